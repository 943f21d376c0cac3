"""How sequences of items and labels are drawn (Reddy 2312.03002, Sec. 2). Nothing here imports
torch."""

from dataclasses import dataclass

from replib.errors import UsageError

WIDTH, N_PLACES = 128, 65  # of a token; its first numbers say where it stands
CONTENT = WIDTH - N_PLACES  # 63, the paper's D
N_FRESH = 128  # new classes in each batch


@dataclass(frozen=True)
class Law:
    """How sequences are drawn. Raises UsageError for numbers that do not go together."""

    n_labels: int = 32  # L
    n_pairs: int = 8  # N
    n_classes: int = 512  # K, a multiple of L: class k has label k mod L
    burst: int = 1  # B: items of one class in a bursty sequence; N / B classes
    bursty: float = 1.0  # pB: share of sequences whose query is of a class of the context
    fresh: float = 1.0  # pC: share of sequences of classes that are new in this batch
    noise: float = 0.1  # eps

    def __post_init__(self) -> None:
        if self.n_pairs % self.burst or self.n_pairs // self.burst > self.n_labels:
            raise UsageError(
                f"{self.n_pairs} pairs with {self.burst} of a class and {self.n_labels} labels: "
                "the burst divides the pairs, and each class of a context needs its own label"
            )
        if self.n_classes % self.n_labels or not self.n_labels <= N_FRESH:
            raise UsageError(
                f"{self.n_classes} classes and {self.n_labels} labels: every label needs as many "
                f"classes, and there are at most {N_FRESH} labels"
            )
        if not 1 <= self.n_tokens <= N_PLACES:
            raise UsageError(f"{self.n_pairs} pairs do not fit into {N_PLACES} places")

    @property
    def n_tokens(self) -> int:
        """Of one sequence, the query included."""
        return 2 * self.n_pairs + 1
