"""The user's training command on a CPU: examples/speechlm_desta.py under the stand-in for torch.cuda."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "speechlm_desta.py"

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.megatron.cuda_standin import cuda_standin

    with cuda_standin():  # argv stays: Lightning starts the other processes with it
        exec(compile(SCRIPT.read_text(), str(SCRIPT), "exec"), {"__name__": "__main__", "__file__": str(SCRIPT)})
