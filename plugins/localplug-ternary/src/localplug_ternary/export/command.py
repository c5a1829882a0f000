"""`localplug export ternary`: write a saved ternary model in a format of others."""

import argparse
import logging
from typing import Any

EXAMPLES = """\
examples:
  localplug export ternary out/packed --to gguf --out out/gguf
  localplug export ternary out/packed --to gguf --type TQ1_0 --out out/small
  localplug export ternary out/packed --to plain --out out/plain

exit status: 0 done, 1 what was written did not read back, 2 wrong use, 130 interrupted"""

logger = logging.getLogger("localplug")


def main(arguments: list[str]) -> int:
    """Load, write and compare. Returns the exit status: 2 for what does not fit, 1 for what did not read back as written."""
    parser = argparse.ArgumentParser(
        prog="localplug export",
        description="Write a saved model in a format of others.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    ternary = kinds.add_parser(
        "ternary",
        help="a model of localplug-ternary, latent at the end of its training, or packed",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ternary.add_argument("model", help="folder, or name on the hub")
    ternary.add_argument(
        "--to", required=True, choices=("plain", "gguf", "bitnet"), help="see localplug_ternary.export"
    )
    ternary.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must not exist, or be empty")
    ternary.add_argument("--type", choices=("TQ2_0", "TQ1_0", "Q2_0"), help="of gguf (default: TQ2_0)")
    given = parser.parse_args(arguments)

    from transformers import AutoModelForCausalLM

    import localplug_ternary.quantizer  # noqa: F401  # transformers then knows the format
    from localplug.errors import LocalPlugError
    from localplug_ternary import export

    if given.type and given.to != "gguf":
        parser.error(f"--type is for --to gguf, not {given.to}")
    try:
        model = AutoModelForCausalLM.from_pretrained(given.model, dtype="auto")
        tokenizer = _tokenizer(given.model)
        if given.to == "gguf":
            if tokenizer is None:
                raise ValueError(f"{given.model} has no tokenizer; save it there, for llama.cpp keeps both in one file")
            written = export.gguf(model, tokenizer, given.out, given.type or "TQ2_0")
        else:
            written = (export.plain if given.to == "plain" else export.bitnet)(model, given.out)
            if tokenizer is not None:
                tokenizer.save_pretrained(written)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 2
    except LocalPlugError as error:
        logger.error("%s", error)
        return 1
    logger.info("written to %s", written)
    return 0


def _tokenizer(model: str) -> Any:
    """None where the model has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (ValueError, OSError):
        return None
