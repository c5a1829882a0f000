"""`localplug ternarize`: make a saved causal language model ternary."""

import argparse
import logging

EXAMPLES = """\
examples:
  localplug ternarize HuggingFaceTB/SmolLM2-135M out/latent --group-size 64
  localplug ternarize out/latent out/packed --group-size 64 --packed

exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted"""

logger = logging.getLogger("localplug")


def main(arguments: list[str]) -> int:
    """Load, convert, report and save. Returns the exit status: 2 for what does not fit."""
    parser = argparse.ArgumentParser(
        prog="localplug ternarize",
        description="Make a saved causal language model ternary: latent weights to train, or packed ones.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder, or name on the hub")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--method", default="tequila", help="tequila, absmean, twn, sherry or annealed")
    parser.add_argument(
        "--group-size",
        default="256",
        choices=("256", "128", "64", "row"),
        help="inputs that share a scale (default: 256)",
    )
    parser.add_argument("--packed", action="store_true", help="pack to 2 bits a weight; they train no more")
    given = parser.parse_args(arguments)

    from transformers import AutoModelForCausalLM

    from localplug_ternary.card import save_pretrained
    from localplug_ternary.config import TernaryConfig
    from localplug_ternary.measure import report

    try:
        group_size = None if given.group_size == "row" else int(given.group_size)
        config = TernaryConfig(given.method, group_size, packed=given.packed)
        model = AutoModelForCausalLM.from_pretrained(given.model, quantization_config=config)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 2
    save_pretrained(model, given.out)
    logger.info("%s\nwritten to %s", report(model), given.out)
    return 0
