"""What a variant is called, and whether the words in it are known: said before a process is started for it.

parse_variant("nf4-fa2-bf16")      # ("nf4", "fa2", "bf16", "auto"): format, attention, compute, engine
"""

from __future__ import annotations

from petalite.attention import BACKENDS
from petalite.device import COMPUTES
from petalite.engine import ENGINES, OWN_ATTENTION
from petalite.errors import PetaliteError, did_you_mean
from petalite.formats import FORMATS, get_format
from petalite.recipe import REFERENCE_VARIANTS

#: What may be said of each, in the order of a variant's name.
_KNOWN = {
    "attention": ("auto", *BACKENDS, OWN_ATTENTION, "openvino"),  # the CPU engine has its own too
    "compute": ("auto", *COMPUTES),
    "engine": ENGINES,
}


def check_words(**words: str) -> None:
    """Raise PetaliteError for an attention, compute or engine of no such name."""
    for kind, word in words.items():
        if word not in (known := _KNOWN[kind]):
            raise PetaliteError(f"unknown {kind} '{word}'{did_you_mean(word, known)}; known: {', '.join(known)}")


def parse_variant(name: str) -> tuple[str, str, str, str]:
    """(format, attention, compute, engine) of a variant's name, FORMAT[-ATTENTION[-COMPUTE[-ENGINE]]]; `auto` where not named.

    The reference's five run in plain modules, as the reference ran them, unless they name an engine.
    """
    parts = name.split("-")
    cuts = [
        cut for cut in range(len(parts), 0, -1) if "-".join(parts[:cut]) in FORMATS
    ]  # a format's name may hold hyphens
    format = get_format("-".join(parts[: cuts[0]]) if cuts else parts[0]).name
    words = parts[cuts[0] :]
    kinds = tuple(_KNOWN.values())
    for place, word in enumerate(words):
        known = kinds[place] if place < len(kinds) else ()
        if word not in known:
            raise PetaliteError(
                f"variant '{name}': '{word}' is not known there{did_you_mean(word, known)}; a variant is FORMAT, "
                "FORMAT-ATTENTION, FORMAT-ATTENTION-COMPUTE or FORMAT-ATTENTION-COMPUTE-ENGINE, e.g. nf4-fa2"
            )
    attention, compute, engine = [*words, "auto", "auto", "auto"][:3]
    return format, attention, compute, "module" if name in REFERENCE_VARIANTS else engine
