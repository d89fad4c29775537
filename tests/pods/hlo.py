"""What a compiled TPU program costs, read off the text of its HLO (`compiled.as_text()`)."""

import collections
import math
import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)", re.MULTILINE)
_SHAPE = re.compile(r"([a-z]+\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|send)(?:-start)?\(")
_ALIAS = re.compile(r"\{\d*\}: \(\d+, \{\d*\}, (?:may|must)-alias\)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "slice-done"}
_MOVES = {"copy", "copy-start", "copy-done", "slice-start", "slice-done", "bitcast", "custom-call"}


class Buffer(NamedTuple):
    size: int  # In bytes, without the padding of tiles.
    in_hbm: bool  # Otherwise in a memory on the chip: its layout says `S(n)`.


class Instruction(NamedTuple):
    opcode: str
    results: list[Buffer]
    operands: list[str]


def entry(text):
    """The instructions of the entry computation, by name, in order."""
    found = _INSTRUCTION.findall(text, text.index("\nENTRY"))
    instructions = {
        name: Instruction(opcode, [_buffer(*shape) for shape in _SHAPE.findall(results)], re.findall("%([^ ,]+)", args))
        for name, results, opcode, args in found
    }
    nested = {i.opcode for i in instructions.values()} & {"while", "call", "conditional"}
    assert not nested, f"what a {nested} moves is not counted here"
    return instructions


def hbm_bytes(instructions):
    """The bytes that the program reads from HBM and writes to it.

    `cost_analysis()` counts the copies into the memory on the chip, and the reads from there, too.
    """
    total = 0
    for instruction in instructions.values():
        if instruction.opcode in _FREE:
            continue
        if instruction.opcode == "slice-start":  # Its operand is whole; the slice alone moves.
            source, slice_ = instruction.results[:2]
            total += slice_.size * (source.in_hbm + slice_.in_hbm)
            continue
        # Starting a copy returns its source and its target.
        names = [] if instruction.opcode == "copy-start" else instruction.operands
        buffers = instruction.results + [b for name in names for b in instructions[name].results]
        total += sum(b.size for b in buffers if b.in_hbm)
    return total


def copies(instructions):
    """The copies to HBM of what was there already; carrying a result there from the memory on the chip is none."""

    def lay_in_hbm(name):
        instruction = instructions[name]
        if instruction.results[0].in_hbm or instruction.opcode == "parameter":
            return True
        return instruction.opcode in _MOVES and any(map(lay_in_hbm, instruction.operands))

    return [
        name
        for name, instruction in instructions.items()
        if instruction.opcode in ("copy", "copy-start")
        and instruction.results[0].in_hbm
        and instruction.results[0].size > 4  # The step count and the learning rate are scalars.
        and lay_in_hbm(instruction.operands[0])
    ]


def collectives(text):
    """How often each collective occurs; what goes between slices is a `send`."""
    return dict(collections.Counter(_COLLECTIVE.findall(text)))


def aliased(text):
    """How many results are written into the buffer of an argument."""
    return len(_ALIAS.findall(text.partition("entry_computation_layout")[0]))


def _buffer(dtype, dimensions, layout):
    bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype) or 0)
    return Buffer(math.prod(int(d) for d in dimensions.split(",") if d) * bits // 8, "S(" not in layout)
