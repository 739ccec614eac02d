"""What a compiled kernel is made of, read from its machine code; and what no kernel of this folder may contain.

Registers decide how many programs share a multiprocessor, and the order of loads and their first use decides how much
memory traffic a program keeps going: both are known before any GPU runs the code. `aot` makes the binaries.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

#: Of one multiprocessor: registers, resident warps, resident programs, shared memory in bytes.
REGISTERS, PROGRAMS = 65536, 32
WARPS = 64
SHARED_MEMORY = {80: 164 * 1024}  # sm_90 and sm_100: the default below
DEFAULT_SHARED_MEMORY = 228 * 1024
RESERVED_SHARED_MEMORY = 1024  # the system's, per program
REGISTER_UNIT = 256  # registers are given to warps in multiples of this

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", re.MULTILINE)
_REGISTER = re.compile(r"\bR(\d+)\b")
_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Binary:
    """One kernel for one architecture (90 for sm_90)."""

    kernel: str
    shape: str
    arch: int
    warps: int
    registers: int
    stack: int
    spills: int  # instructions that store to or load from local memory
    atomics: int
    wide_loads: int  # 16 bytes per thread
    barriers: int
    instructions: int
    shared: int
    kib_in_flight: float

    @property
    def programs_per_sm(self) -> int:
        """Programs that one multiprocessor holds at once."""
        return programs_per_sm(self.arch, self.warps, self.registers, self.shared)


def read_binary(
    cubin: bytes, *, kernel: str, shape: str, arch: int, warps: int, shared: int, frame: int,
    launched: int = PROGRAMS,
) -> Binary:  # fmt: skip
    """Disassemble.

    For `Binary.kib_in_flight`: ``frame`` is the bytes of one frame of all layers, see `bytes_in_flight`; ``launched``
    the programs per multiprocessor that a launch asks for.
    """
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump(cubin, "-res-usage"))
    code = _INSTRUCTION.findall(_cuobjdump(cubin, "-sass"))
    if usage is None or not code:
        raise RuntimeError(f"cuobjdump says nothing about {kernel} for sm_{arch}; is it older than the architecture?")
    registers, stack = int(usage[1]), int(usage[2])
    ops = Counter(name.split(".")[0] for name, _ in code)
    programs = min(launched, programs_per_sm(arch, warps, registers, shared))
    return Binary(
        kernel, shape, arch, warps, registers, stack,
        spills=ops["STL"] + ops["LDL"],
        atomics=ops["ATOM"] + ops["ATOMG"] + ops["ATOMS"] + ops["RED"] + ops["REDG"],
        wide_loads=sum(name.startswith("LDG") and "128" in name.split(".") for name, _ in code),
        barriers=ops["BAR"],
        instructions=len(code),
        shared=shared,
        kib_in_flight=programs * min(frame, 32 * warps * bytes_in_flight(code)) / 1024,
    )  # fmt: skip


def problems(binary: Binary) -> list[str]:
    """What the gate does not allow, in words; empty if all is well."""
    found = []
    if binary.stack or binary.spills:
        found.append(f"spills: {binary.stack} bytes of stack, {binary.spills} STL/LDL (registers: {binary.registers})")
    if not binary.wide_loads:
        found.append("no 128-bit load; 16 bytes per thread is what memory wants")
    if binary.atomics:
        found.append(f"{binary.atomics} atomic operations; sums would depend on the order of programs")
    return found


def programs_per_sm(arch: int, warps: int, registers: int, shared: int) -> int:
    """As the hardware hands out registers, warps, shared memory and slots."""
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    memory = SHARED_MEMORY.get(arch, DEFAULT_SHARED_MEMORY) // (shared + RESERVED_SHARED_MEMORY)
    return min(REGISTERS // per_warp // warps, WARPS // warps, memory, PROGRAMS)


def bytes_in_flight(code: list[tuple[str, str]]) -> int:
    """The most that one thread has asked memory for before an instruction waits for the oldest of it.

    A warp issues in order and stops at the first instruction that names the register of a load under way; by then this
    load and the ones before it count as done. All global loads count, also of parameters that the cache holds, so
    `read_binary` takes no more than one frame of all layers per program.
    """
    pending: list[tuple[range, int]] = []
    most = 0
    for name, operands in code:
        registers = [int(number) for number in _REGISTER.findall(operands)]
        waits = [i for i, (loading, _) in enumerate(pending) if any(r in loading for r in registers)]
        if waits:
            del pending[: waits[-1] + 1]
        if name.startswith("LDG.") and registers:
            size = next((_BYTES[part] for part in name.split(".") if part in _BYTES), 4)
            pending.append((range(registers[0], registers[0] + max(1, size // 4)), size))
            most = max(most, sum(size for _, size in pending))
    return most


def _cuobjdump(cubin: bytes, what: str) -> str:
    """Of the CUDA tools that Triton brings along."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, what, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
