"""What a compiled program does to memory, read off its HLO text (`jax.jit(step).lower(...).compile().as_text()`).

What is counted does not depend on the machine's load. `work` counts kernels and their bytes, for a CPU and a GPU;
`hbm_bytes` and `copies_to_hbm` count for a TPU, whose compiler also keeps arrays in memory on the chip.
"""

import collections
import math
import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) .*\{$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(true_computation|false_computation|calls|to_apply|body)=%([\w.-]+)")
_NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_IDLE = _NO_WORK | {"after-all", "partition-id"}
_FREE = _NO_WORK | {"copy-done", "slice-done"}
_MOVES = {"copy", "copy-start", "copy-done", "slice-start", "slice-done", "bitcast", "custom-call"}
_COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "send"}


class Array(NamedTuple):
    """An array that an instruction gives."""

    shape: tuple[int, ...]
    bytes: int  # Without the padding of tiles.
    in_hbm: bool  # Otherwise in a memory on a TPU's chip: its layout says `S(n)`.


class Instruction(NamedTuple):
    """One line of a program."""

    opcode: str
    results: list[Array]
    operands: list[str]
    attributes: str


Computation = dict[str, Instruction]  # The instructions by their names, in order.


class Work(NamedTuple):
    """What a step does."""

    kernels: list[int]  # The bytes that each reads and writes.
    copies: int  # Those among them that only copy.
    operations: set[str]  # The arithmetic that is done on arrays.

    @property
    def bytes(self) -> int:
        """All that is read and written."""
        return sum(self.kernels)


def work(text: str, branch: int = 0) -> Work:
    """Return what a compiled step does.

    A kernel counts if it reads or writes more than one element: those of the scalars are few, and cost a step nothing
    that grows.

    Args:
      text: the HLO of the program.
      branch: which branch of every conditional is taken: that of False is 0, and that of True is 1.
    """
    computations, entry = _parse(text)
    kernels: list[int] = []
    copies, operations = 0, set()

    def visit(name: str, *, in_kernel: bool = False) -> None:
        nonlocal copies
        computation = computations[name]
        for instruction in computation.values():
            if instruction.opcode in _IDLE:
                continue
            called = _called(instruction, branch)
            if instruction.opcode in ("call", "conditional", "while") and called:
                visit(called, in_kernel=in_kernel)
                continue
            touched = [
                *instruction.results,
                *(array for operand in instruction.operands for array in computation[operand].results),
            ]
            if any(math.prod(array.shape) > 1 for array in touched):
                operations.add(instruction.opcode)
                if not in_kernel:
                    kernels.append(sum(array.bytes for array in touched))
                    copies += instruction.opcode == "copy"
            if called:
                visit(called, in_kernel=True)

    visit(entry)
    return Work(kernels, copies, operations)


def computations(text: str) -> list[Computation]:
    """Return the computations of a program: the one that is run, its kernels, its branches."""
    return list(_parse(text)[0].values())


def shapes(text: str, *opcodes: str) -> list[tuple[int, ...]]:
    """Return the shapes of what instructions of these kinds give, wherever in the program they are."""
    instructions = [instruction for computation in computations(text) for instruction in computation.values()]
    return [array.shape for one in instructions if one.opcode in opcodes for array in one.results]


def opcodes(text: str, rows: int) -> set[str]:
    """Return the kinds of the instructions that give an array of so many rows, wherever in the program they are."""
    instructions = [instruction for computation in computations(text) for instruction in computation.values()]
    return {one.opcode for one in instructions if any(array.shape[:1] == (rows,) for array in one.results)}


def collectives(text: str) -> dict[str, int]:
    """Return how often each collective occurs; what goes between a TPU's slices is a `send`."""
    opcodes = (one.opcode.removesuffix("-start") for computation in computations(text) for one in computation.values())
    return dict(collections.Counter(opcode for opcode in opcodes if opcode in _COLLECTIVES))


def sent(text: str) -> dict[str, int]:
    """Return the bytes of the whole arrays that go through each kind of collective, as each device has them.

    That is what an all-gather gives, what a reduce-scatter takes, and what goes through any other. A ring of many
    devices sends nearly as much from each device, and an all-reduce twice that.
    """
    total: collections.Counter[str] = collections.Counter()
    for computation in computations(text):
        for one in computation.values():
            kind = one.opcode.removesuffix("-done")
            if kind in _COLLECTIVES:
                arrays = one.results
                if kind == "reduce-scatter" and kind == one.opcode:
                    arrays = [array for operand in one.operands for array in computation[operand].results]
                total[kind] += sum(array.bytes for array in arrays)
    return dict(total)


def aliased(text: str) -> int:
    """Return how many results are written into the buffer of an argument."""
    return len(re.findall(r"(?:may|must)-alias\)", text.partition("entry_computation_layout")[0]))


def hbm_bytes(text: str) -> int:
    """Return the bytes that a TPU's program reads from HBM and writes to it.

    `cost_analysis()` counts the copies into the memory on the chip, and the reads from there, too.
    """
    total, instructions = 0, _entry(text)
    for instruction in instructions.values():
        if instruction.opcode in _FREE:
            continue
        if instruction.opcode == "slice-start":  # Its operand is whole; the slice alone moves.
            source, slice_ = instruction.results[:2]
            total += slice_.bytes * (source.in_hbm + slice_.in_hbm)
            continue
        # Starting a copy returns its source and its target.
        names = [] if instruction.opcode == "copy-start" else instruction.operands
        arrays = instruction.results + [array for name in names for array in instructions[name].results]
        total += sum(array.bytes for array in arrays if array.in_hbm)
    return total


def copies_to_hbm(text: str) -> list[str]:
    """Return the names of the copies to HBM of what lay there already.

    Carrying a result to HBM from the memory on the chip is no such copy.
    """
    instructions = _entry(text)

    def lay_in_hbm(name: str) -> bool:
        instruction = instructions[name]
        if instruction.results[0].in_hbm or instruction.opcode == "parameter":
            return True
        return instruction.opcode in _MOVES and any(map(lay_in_hbm, instruction.operands))

    return [
        name
        for name, instruction in instructions.items()
        if instruction.opcode in ("copy", "copy-start")
        and instruction.results[0].in_hbm
        and instruction.results[0].bytes > 4  # The step count and the learning rate are scalars.
        and lay_in_hbm(instruction.operands[0])
    ]


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return the instructions of each computation, and the name of the one that is run."""
    parsed: dict[str, Computation] = {}
    name = entry = ""
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            name = heading[2]
            parsed[name] = {}
            entry = name if heading[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            operands = re.findall(r"%([\w.-]+)", found[4])
            results = [_array(*array) for array in _ARRAY.findall(found[2])]
            parsed[name][found[1]] = Instruction(found[3], results, operands, found[5])
    return parsed, entry


def _array(kind: str, bits: str, dimensions: str, layout: str) -> Array:
    shape = tuple(int(size) for size in dimensions.split(",") if size)
    return Array(shape, math.prod(shape) * (8 if kind == "pred" else int(bits or 0)) // 8, "S(" not in layout)


def _entry(text: str) -> Computation:
    """Return the instructions of a TPU's program, of which all are in the computation that is run."""
    parsed, entry = _parse(text)
    nested = {instruction.opcode for instruction in parsed[entry].values()} & {"while", "call", "conditional"}
    assert not nested, f"what a {nested} moves is not counted here"
    return parsed[entry]


def _called(instruction: Instruction, branch: int) -> str | None:
    """Return the computation that an instruction runs, where it is not the whole of what the instruction does."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    named = dict(_CALLED.findall(instruction.attributes))
    if listed:
        return listed[1].replace("%", "").split(", ")[branch]
    if "true_computation" in named:
        return named[("false_computation", "true_computation")[branch]]
    return named.get("calls") or named.get("body") or (named.get("to_apply") if instruction.opcode == "call" else None)
