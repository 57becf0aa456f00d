import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / "examples" / "labels.ipynb").read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_notebook_runs_and_its_labels_are_right(tmp_path):
    script = tmp_path / "labels.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in CODE))
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    medians_m = {name: float(m) for name, m in re.findall(r"^(.+): median error ([\d.]+) m", done.stdout, re.M)}
    assert medians_m.keys() == {"one sweep", "accumulated"}
    assert all(0 < m < 0.05 for m in medians_m.values())  # the LiDAR has noise of 2 cm
    assert "good: 0 problems" in done.stdout


def test_notebook_is_kept_without_output():
    assert CODE and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
