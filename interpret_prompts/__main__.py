"""Print, for each learned text vector of a checkpoint, the vocabulary words at the smallest Euclidean distance.

    python -m interpret_prompts output/dtd/seed1/prompt_learner/model.pth.tar-200
    python -m interpret_prompts output/dtd/seed1/prompt_learner --topk 5

CHECKPOINT is a file, or a folder of checkpoints (the last one is read). Contexts and deep text prompts are read: CoOp,
CoCoOp, IVLP, MaPLe, APEX and all that use their names. A checkpoint of this project knows its backbone; for one of
another project, or whose backbone is a file, give --backbone. `</w>` ends a word; a token without it is the beginning
of a longer word.
"""

import dassl.ctrl_c  # noqa: F401  # isort: skip - before what takes seconds

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip.loading import load_backbone, require_published
from dassl.output import printable_streams
from dassl.utils import load_checkpoint
from dassl.utils.checkpoints import last_checkpoint
from interpret_prompts.nearest import nearest_words, text_vectors, vocabulary

BACKBONE = "ViT-B/16"  # of a checkpoint that does not say


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m interpret_prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="checkpoint file, or folder of checkpoints")
    parser.add_argument("--topk", type=int, default=3, help="words per vector")
    named = f"name or weights file (default: the run's, if it is a published model, else {BACKBONE})"
    parser.add_argument("--backbone", default="", help=named)
    parser.add_argument("--backbone-path", help="as MODEL.BACKBONE.PATH; needed where the run had one")
    return parser


def lines(args: argparse.Namespace) -> Iterator[str]:
    """The report, line by line.

    Raises:
        ValueError, FileNotFoundError: a mistake in the arguments, or a checkpoint without text vectors.
    """
    path = args.checkpoint
    if Path(path).is_dir():
        path = last_checkpoint(path)
        if path is None:
            raise FileNotFoundError(f"{args.checkpoint} is no folder of checkpoints: it has no file named checkpoint")
    checkpoint = load_checkpoint(path)
    state, classnames = checkpoint.get("state_dict", checkpoint), checkpoint.get("classnames", ())
    node = checkpoint.get("config", {}).get("MODEL", {}).get("BACKBONE", {})
    name = args.backbone or checkpoint.get("backbone") or BACKBONE
    if not args.backbone:
        place = node.get("PATH", "") if args.backbone_path is None else ""
        require_published(name, place, path, "--backbone", "--backbone-path")
    backbone = load_backbone(name, args.backbone_path or "")
    backbone.require_identity(checkpoint, path)
    vectors = text_vectors(state, backbone.text_layers, classnames)
    words, table = vocabulary(backbone)
    yield f"{path}: {args.topk} nearest of {len(words)} words of {name}, Euclidean distance in brackets"
    for title, block in vectors.items():
        yield f"{title} ({block.shape[0]} x {block.shape[1]})"
        for number, row in enumerate(nearest_words(block, words, table, args.topk), 1):
            yield f"  {number}: " + ", ".join(f"{word} ({distance:.4f})" for word, distance in row)


@printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; a user's mistake ends with one sentence on stderr and exit status 2."""
    args = build_parser().parse_args(argv)
    try:
        for line in lines(args):
            sys.stdout.write(f"{line}\n")
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        sys.stderr.write(f"interpret_prompts: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
