"""A program of our own that runs an ONNX file and prints its time as no other one does."""

from __future__ import annotations

import sys
import time

import numpy as np
import onnxruntime

path, threads = sys.argv[1], int(sys.argv[2])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = threads, 4
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
draw = np.random.default_rng(0)
feeds = {
    one.name: draw.standard_normal(one.shape).astype(np.float32) for one in session.get_inputs()
}
spent = []
for _ in range(12):
    start = time.perf_counter()
    session.run(None, feeds)
    spent.append(time.perf_counter() - start)
print(f"[bench] {path}\n[bench] first run: {1e6 * spent[0]:.0f} us")
print(f"[bench] typical run => {1e6 * float(np.median(spent[2:])):.1f} us")
