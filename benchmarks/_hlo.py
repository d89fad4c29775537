"""What a compiled step does to memory, read off its HLO text: its kernels, and the bytes of what they read and write.

It does not depend on the machine's load. A kernel counts if it reads or writes more than one element: those of the
scalars are few, and cost a step nothing that grows.
"""

import math
import re
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = (.*?) ([\w-]+)\(([^)]*)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) .*\{$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_NO_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}


class Work(NamedTuple):
    """What a step does."""

    kernels: list[int]  # The bytes that each reads and writes.
    copies: int  # Those among them that only copy.
    operations: set[str]  # The arithmetic that is done on arrays.

    @property
    def bytes(self) -> int:
        """All that is read and written."""
        return sum(self.kernels)


class _Instruction(NamedTuple):
    name: str
    result: str  # Its type.
    operation: str
    operands: list[str]
    attributes: str


def work(text: str, branch: int = 0) -> Work:
    """Return what a compiled step does.

    Args:
      text: `jax.jit(step).lower(...).compile().as_text()`.
      branch: which branch of every conditional is taken: that of False is 0, and that of True is 1.
    """
    computations, entry = _parse(text)
    done = Work([], 0, set())

    def visit(name: str, *, in_kernel: bool = False) -> None:
        nonlocal done
        results = {instruction.name: instruction.result for instruction in computations[name]}
        for instruction in computations[name]:
            if instruction.operation in _NO_WORK:
                continue
            called = _called(instruction, branch)
            if instruction.operation in ("call", "conditional", "while") and called:
                visit(called, in_kernel=in_kernel)
                continue
            touched = [instruction.result, *(results[operand] for operand in instruction.operands)]
            if max(map(_elements, touched)) > 1:
                done.operations.add(instruction.operation)
                if not in_kernel:
                    done.kernels.append(sum(map(_bytes, touched)))
                    done = done._replace(copies=done.copies + (instruction.operation == "copy"))
            if called:
                visit(called, in_kernel=True)

    visit(entry)
    return done


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Return the instructions of each computation, and the name of the one that is run."""
    computations: dict[str, list[_Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            name = heading[2]
            computations[name] = []
            entry = name if heading[1] else entry
        elif name and (found := _INSTRUCTION.match(line)):
            operands = re.findall(r"%([\w.-]+)", found[4])
            computations[name].append(_Instruction(found[1], found[2], found[3], operands, found[5]))
    return computations, entry


def _called(instruction: _Instruction, branch: int) -> str | None:
    """Return the computation that an instruction runs, where it is not the whole of what the instruction does."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    named = dict(
        re.findall(r"(true_computation|false_computation|calls|to_apply|body)=%([\w.-]+)", instruction.attributes)
    )
    if listed:
        return listed[1].replace("%", "").split(", ")[branch]
    if "true_computation" in named:
        return named[("false_computation", "true_computation")[branch]]
    return (
        named.get("calls") or named.get("body") or (named.get("to_apply") if instruction.operation == "call" else None)
    )


def _elements(type_: str) -> int:
    return max((math.prod(_shape(dims)) for _, _, dims in _ARRAY.findall(type_)), default=0)


def _bytes(type_: str) -> int:
    return sum(math.prod(_shape(dims)) * int(bits or 8) // 8 for _, bits, dims in _ARRAY.findall(type_))


def _shape(dims: str) -> list[int]:
    return [int(size) for size in dims.split(",") if size]
