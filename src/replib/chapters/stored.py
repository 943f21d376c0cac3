"""What chapters keep stored: trained weights, each with a card in JSON that tells how they were
made. Nothing here imports torch.

A card holds the sha256 of its weights and the hash of the code that trained them. What cannot be
used is refused in one line, which ends with the command that makes it.

A chapter that stores something says so in a module `stored` of its own, with these functions:

    needed(root, parameters, model)   {name: sha256} of what a run reads; raises NotStored
    files(root, model)                the files that hold it
    code_sha256()                     the hash of the code that trains
    add_options(parser)               what `replib train` may be asked, beside --device
    trainings(root, options)          {name: a function that trains it}; empty: all that is missing
    missing(root)                     names of what is to be trained next, each a value of --cell
                                      (only where `trainings` may be empty)

A chapter that trains its own networks (`replib.models.sources.TRAINING`) loads no language model:
its `model_name` is trained-X, planted-X or untrained-X, and `needed` is empty but for the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replib.errors import UsageError
from replib.files import sha256_file


class NotStored(UsageError):
    """A stored training cannot be used; the line says how to make it."""


def make_with(paper: str, **options: object) -> str:
    """The end of a refusal: the command that makes what is missing."""
    words = "".join(f" --{name} {value}" for name, value in options.items())
    return f"make it with: replib train {paper}{words}"


@contextmanager
def reading(where: str, again: str) -> Iterator[None]:
    """Inside, cards are read: one that is not JSON, or lacks something, is refused."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise NotStored(f"{where} cannot be read ({reason}); {again}") from None


def check_weights(path: Path, sha256: object, what: str, which: str, again: str) -> None:
    """Refuse weights that are not those of their card."""
    if (found := sha256_file(path)) != sha256:
        raise NotStored(
            f"{what} was altered: the sha256 of {which} is {found[:12]}…, not "
            f"{str(sha256)[:12]}… as its card says; {again}"
        )
