"""How hard a request may push: a limit in lengths of the residual stream, so that it means the same at every layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pilothouse.core.edits import Edit
from pilothouse.core.errors import BadRequest


@dataclass
class StrengthLimit:
    """At most `most` lengths of the stream at any layer, all edits of a request together; None for no limit.

    lengths: the typical length of the stream by layer, as the start-up self-test measured it; empty where it had
    nothing to compare with, None until then, when what is not known is let pass. A vector's own card stands above it.
    """

    most: float | None = None
    lengths: Mapping[int, float] | None = None

    def pushes(self, edits: Sequence[Edit], resid_norms: Sequence[Mapping[int, float]]) -> tuple[float | None, ...]:
        """For each edit how many lengths of the stream it may add at the layer where that is most; None where how long
        the stream is there is not known."""
        found = []
        for edit, norms in zip(edits, resid_norms, strict=True):
            lengths = {layer: norms.get(layer) or (self.lengths or {}).get(layer) for layer in edit.coefficients}
            known = [edit.push(layer) / length for layer, length in lengths.items() if length]
            found.append(max(known) if len(known) == len(lengths) else None)
        return tuple(found)

    def check(self, edits: Sequence[Edit], resid_norms: Sequence[Mapping[int, float]], where: str) -> None:
        """BadRequest for the first of a request's edits that goes too far, or whose length cannot be told.

        resid_norms: of each edit what the card of its vector says of the stream's length by layer.
        """
        if self.most is None:
            return
        pushed: dict[int, float] = {}
        for i, (edit, norms) in enumerate(zip(edits, resid_norms, strict=True)):
            for layer in edit.coefficients:
                if not (push := edit.push(layer)):
                    continue
                length = norms.get(layer) or (self.lengths or {}).get(layer)
                if not length:
                    if self.lengths is None:
                        continue
                    raise BadRequest(
                        f"this server limits strength to {self.most:g} lengths of the stream, and how long it is at "
                        f"layer {layer} is not known: use a vector whose card has resid_norm",
                        f"{where}[{i}].strength",
                    )
                pushed[layer] = pushed.get(layer, 0.0) + push / length
                if pushed[layer] > self.most:
                    raise BadRequest(
                        f"this server allows {self.most:g} lengths of the stream at a layer, and the request has "
                        f"{pushed[layer]:.3g} at layer {layer}",
                        f"{where}[{i}].strength",
                    )
