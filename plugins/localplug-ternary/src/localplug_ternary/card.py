"""Save a ternary model with a model card that says how to load it: transformers cannot find the package by itself."""

import os
import pathlib
from typing import Any

from transformers import PreTrainedModel

from localplug_ternary.config import IMPORT, OURS, config_of


def model_card(model: PreTrainedModel) -> str:
    """The text of README.md.

    Raises:
        ValueError: the model is not ternary.
    """
    config = config_of(model)
    if config is None:
        raise ValueError("the model is not ternary; ternarize_ makes it so")
    groups = f"groups of {config.group_size} inputs" if config.group_size else "whole rows"
    form = "packed, 2 bits a weight" if config.packed else "latent weights, for training"
    name = type(model).__name__
    more = "" if config.method in OURS else f" and the package that gives the method {config.method}"
    return f"""---
library_name: transformers
tags:
- localplug-ternary
---
Ternary weights ({config.method}, one scale for {groups}; {form}).

To load it, `pip install localplug-ternary`{more}, and import the quantizer before the model is loaded:

```python
{IMPORT}
from transformers import {name}

model = {name}.from_pretrained("PATH")
```
"""


def save_pretrained(model: PreTrainedModel, folder: str | os.PathLike[str], **options: Any) -> None:
    """model.save_pretrained, and a README.md with what it takes to load it, unless the folder has one.

    Args:
        model: a ternary model of transformers, latent or packed.
        folder: where to.
        options: of model.save_pretrained.

    Raises:
        ValueError: the model is not ternary.
    """
    text = model_card(model)
    model.save_pretrained(folder, **options)
    card = pathlib.Path(folder, "README.md")
    if not card.exists():
        card.write_text(text)
