"""A parser of the text of compiled programs.

XLA's own cost analysis counts the body of a loop once, although the layers of a network are a loop;
here every instruction counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations?)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction: name, type, operation, operands, and the text after the operands."""

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    rest: str

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Dtype and sizes of the result, or of each element if it is a tuple."""
        return list(map(_dtype_and_sizes, _ARRAY.findall(self.type)))

    def attribute(self, name: str) -> str:
        """Returns the value of the attribute `name`, "" if there is none."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^ ,]+)", self.rest)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange of data between devices.

    Args:
        kind: one of `COLLECTIVES`.
        axes: the mesh axes along which devices exchange.
        shape: the largest result on each device.
        payload_bytes: size of the whole that is gathered, reduced or exchanged in one run.
        sent_bytes: bytes that each device sends in a step, in all runs.
        times: number of runs in a step.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    payload_bytes: float
    sent_bytes: float
    times: int


class Program:
    """The text of a compiled program, `jax.stages.Compiled.as_text()`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.computations: dict[str, dict[str, Instruction]] = {}
        # Loops whose number of iterations is unknown; they count as one iteration.
        self.unread_loops: set[str] = set()
        # The root instruction of each computation.
        self._roots: dict[str, Instruction] = {}
        computation = ""
        entry = ""
        instructions = {}
        for line in text.splitlines():
            if head := _HEAD.match(line):
                computation = head.group(2)
                instructions = self.computations.setdefault(computation, {})
                entry = computation if head.group(1) else entry
            elif found := _INSTRUCTION.match(line):
                is_root, name, text = found.groups()
                instructions[name] = _parsed(name, text)
                if is_root:
                    self._roots[computation] = instructions[name]
        self.entry = entry

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs in one run of the program."""
        times = dict.fromkeys(self.computations, 0)

        def visit(name: str, count: int) -> None:
            times[name] += count
            for instruction in self.computations[name].values():
                inner = count
                if instruction.operation == "while":
                    inner = count * self._trips(instruction, self.computations[name])
                branches = re.findall(r"[\w.\-]+", "".join(_BRANCHES.findall(instruction.rest)))
                for called in (*_CALLED.findall(instruction.rest), *branches):
                    # The function that a reduction applies to pairs of numbers costs little.
                    if called in self.computations and instruction.operation != "reduce":
                        visit(called, inner)

        visit(self.entry, 1)
        return times

    def _trips(self, loop: Instruction, around: Mapping[str, Instruction]) -> int:
        """Returns the number of iterations of a loop: from XLA's annotation, or from its bounds."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known.group(1))
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        compare = next((i for i in condition.values() if i.operation == "compare"), None)
        if compare is None:
            compared = [c for i in condition.values() for c in _CALLED.findall(i.rest)]
            deeper = [i for c in compared for i in self.computations.get(c, {}).values()]
            compare = next((i for i in deeper if i.operation == "compare"), None)
        bounds = [n for i in condition.values() if (n := _constant(i)) is not None]
        if compare is None or not bounds or "direction=LT" not in compare.rest:
            self.unread_loops.add(loop.name)
            return 1
        counter = next((i for i in condition.values() if i.operation == "get-tuple-element"), None)
        if counter is None:
            return max(bounds)
        index = int(counter.attribute("index"))
        start = _constant(_element(around.get(loop.operands[0]), index, around)) or 0
        body = loop.attribute("body").lstrip("%")
        inside = self.computations[body]
        moved = _element(self._roots.get(body), index, inside)
        steps = [_constant(inside.get(name)) for name in moved.operands] if moved else []
        step = next((n for n in steps if n is not None), 1)
        return max((max(bounds) - start + step - 1) // step, 1)

    def flops(self) -> int:
        """Returns the FLOPs of all matrix products and convolutions of one run, on one device."""
        total = 0
        for name, instructions in self.computations.items():
            for instruction in instructions.values():
                if instruction.operation in ("dot", "convolution"):
                    total += self.times[name] * _product_flops(instruction, instructions)
        return total

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """Returns the exchanges of one run, on a mesh with these sizes.

        NOTE: TPU programs spread one collective over several fusions and loop iterations that do
        other work too. Each repeats it with the same channel, and the one that runs least often has
        the true count. A reduce-scatter appears as an all-reduce in a computation named
        "all-reduce-scatter", which keeps only its share. Between slices, programs send to the
        hosts, which do the rest.
        """
        seen: dict[object, Collective] = {}
        for name, instructions in self.computations.items():
            times = self.times[name]
            for instruction in instructions.values():
                kind = instruction.operation.removesuffix("-start")
                if kind == "send" and times and _between_slices(instruction):
                    made = _exchange_of_slices(instruction, mesh, times)
                    seen[instruction.attribute("channel_id")] = made
                if kind in COLLECTIVES and times:
                    scattered = kind == "all-reduce" and "all-reduce-scatter" in name
                    made = _collective(instruction, instructions, mesh, times, scattered)
                    channel = instruction.attribute("channel_id") or (name, instruction.name)
                    if made.axes and (channel not in seen or made.times < seen[channel].times):
                        seen[channel] = made
        return list(seen.values())

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yields dtype and sizes of every array in the program."""
        yield from map(_dtype_and_sizes, set(_ARRAY.findall(self.text)))


def _dtype_and_sizes(found: tuple[str, str]) -> tuple[str, tuple[int, ...]]:
    return found[0], tuple(_numbers(found[1]))


def _parsed(name: str, text: str) -> Instruction:
    """Parses `TYPE operation(operands), rest`; the type of a tuple has spaces and brackets."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind = text[:end]
    text = text[end:].strip()
    open_at = text.find("(")
    close_at = _closing(text, open_at)
    operands = re.findall(r"%([\w.\-]+)", text[open_at:close_at])
    rest = text[close_at + 1 :]
    if text[:open_at] == "constant":
        rest = text[open_at:]
    return Instruction(name, kind, text[:open_at], tuple(operands), rest)


def _closing(text: str, start: int) -> int:
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    return len(text)


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.operation != "constant":
        return None
    found = re.match(r"\((-?\d+)\)", instruction.rest)
    return int(found.group(1)) if found else None


def _element(
    instruction: Instruction | None, index: int, around: Mapping[str, Instruction]
) -> Instruction | None:
    """Returns the instruction of an element of a tuple; None if it is unknown."""
    if instruction is None or instruction.operation != "tuple":
        return None
    return around.get(instruction.operands[index])


def byte_size(dtype: str, shape: tuple[int, ...]) -> float:
    """Returns the size of an array.

    >>> byte_size("bf16", (2, 3)), byte_size("f32", ()), byte_size("pred", (8,))
    (12.0, 4.0, 8.0)
    """
    digits = re.search(r"\d+", dtype)
    # Only booleans have no digits, and take one byte.
    return math.prod(shape) * (int(digits.group()) if digits else 8) / 8


def _product_flops(instruction: Instruction, around: Mapping[str, Instruction]) -> int:
    out = math.prod(instruction.shapes[0][1])
    left, right = (around[name].shapes[0][1] for name in instruction.operands[:2])
    if instruction.operation == "dot":
        contracted = _numbers(instruction.attribute("lhs_contracting_dims"))
        return 2 * out * math.prod(left[i] for i in contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    assert labels is not None, instruction
    of_left, of_right, of_out = labels.groups()
    out_shape = instruction.shapes[0][1]
    total = 2 * out_shape[of_out.index("b")] * out_shape[of_out.index("f")]
    total *= right[of_right.index("i")]
    window = _window(instruction.attribute("window"))
    for digit in filter(str.isdigit, of_out):
        total *= _valid_pairs(
            left[of_left.index(digit)],
            right[of_right.index(digit)],
            out_shape[of_out.index(digit)],
            {name: values[int(digit)] for name, values in window.items()},
        )
    return total


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _window(text: str) -> dict[str, list[list[int]]]:
    """Returns the numbers of each dimension in `{size=1x6 pad=0_0x5_5 ...}`, by name."""
    pairs = re.findall(r"(\w+)=([\w\-]+)", text)
    return {
        name: [[int(n) for n in part.split("_")] for part in value.split("x")]
        for name, value in pairs
    }


def _valid_pairs(size: int, kernel: int, out: int, window: Mapping[str, list[int]]) -> int:
    """Counts the pairs of an output and a window position that meet at an input position."""
    stride = window.get("stride", [1])[0]
    low = window.get("pad", [0, 0])[0]
    dilated = window.get("lhs_dilate", [1])[0]
    spread = window.get("rhs_dilate", [1])[0]
    position = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * spread - low
    is_inside = (position >= 0) & (position < (size - 1) * dilated + 1)
    inside = is_inside & (position % dilated == 0)
    return int(inside.sum())


def _collective(
    instruction: Instruction,
    around: Mapping[str, Instruction],
    mesh: Mapping[str, int],
    times: int,
    scattered: bool,
) -> Collective:
    kind = instruction.operation.removesuffix("-start")
    group = _group(instruction)
    axes = _axes_of(group, mesh)
    count = len(group) or math.prod(mesh.values())
    results = instruction.shapes
    operands = [
        shape for name in instruction.operands if name in around for shape in around[name].shapes
    ]
    # The start of an asynchronous collective also returns its operands, except for an all-reduce.
    if instruction.operation.endswith("-start") and kind != "all-reduce" and len(results) > 1:
        results = results[len(operands) : len(operands) * 2] or results[1:2]
    size = sum(byte_size(*shape) for shape in results)
    if kind == "reduce-scatter":
        size = sum(byte_size(*shape) for shape in operands)
    share = 1.0 if kind == "collective-permute" else (count - 1) / max(count, 1)
    rounds = 2 if kind == "all-reduce" and not scattered else 1
    kind = "reduce-scatter" if scattered else kind
    largest = max(results, key=lambda shape: byte_size(*shape))
    return Collective(kind, axes, *largest, size, rounds * size * share * times, times)


def _between_slices(instruction: Instruction) -> str:
    """Returns the collective of a send to the host, such as "ALL_REDUCE"; "" for none."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    return found.group(1) if found else ""


def _exchange_of_slices(
    instruction: Instruction, mesh: Mapping[str, int], times: int
) -> Collective:
    kind = _between_slices(instruction).lower().replace("_", "-")
    # The data; the other two are a number and a token of the send operation.
    dtype, shape = instruction.shapes[0]
    size = byte_size(dtype, shape)
    slices = mesh["dcn"]
    # A reduction has two rounds; in each a slice sends all but its own share.
    sent = 2 * size * (slices - 1) / slices if kind == "all-reduce" else size * (slices - 1)
    return Collective(kind, ("dcn",), dtype, shape, size, sent * times, times)


def _group(instruction: Instruction) -> list[int]:
    """Returns the first group of several devices that exchange with each other."""
    rest = instruction.rest
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", rest):
        sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
        wanted = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named.group(2))
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        index: list[int | slice] = [0] * len(sizes)
        for name, before, size in wanted:
            axis = list(sizes).index(name)
            # A part of an axis: the stride is the size of the parts after it.
            step = sizes[name] // (int(before) * int(size)) if before else 1
            index[axis] = slice(0, step * int(size) if size else None, step)
        return [int(i) for i in ids[tuple(index)].ravel()]
    if listed := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        groups, dims, order = (_numbers(part or "") for part in listed.groups())
        ids = np.arange(math.prod(dims)).reshape(dims)
        return [int(i) for i in ids.transpose(order or None).reshape(groups)[0]]
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        numbers = _numbers(pairs.group(1))
        moved = [(a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True) if a != b]
        return list(moved[0]) if moved else []
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return _numbers(found.group(1))
    return []


def _axes_of(group: list[int], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ; all for an empty group."""
    if not group:
        return tuple(axis for axis, size in mesh.items() if size > 1)
    coordinates = np.stack(np.unravel_index(group, tuple(mesh.values())))
    return tuple(
        axis for axis, along in zip(mesh, coordinates, strict=True) if len(set(along.tolist())) > 1
    )
