"""The text of ``--help``."""

from __future__ import annotations

from factorize import methods

_METHODS = "\n\n".join(f"- `{name}`: {methods.get(name).summary}" for name in methods.names())

HELP = f"""Make a trained convolutional network smaller and faster.

Each convolution is replaced by a chain of cheaper plain convolutions, fitted to what the layer
puts out for your images (a few hundred, no labels); the result is tuned on them, exported to
ONNX, and reported: accuracy against measured speedup.

**Examples**

- `factorize digits --rank 8`: the built-in example, start to end

- `factorize resnet.pt --rank 8`: fitted to made-up images, where there are none

- `factorize resnet.pt --speedup 2 --data imagenet/`: twice as fast, as accurate as can be

- `factorize detector.onnx --macs 0.5 --data photos/`: an ONNX file, which stays one

- `factorize kit resnet.onnx --speedup 2 --out kit/`: for a device far away, see its `--help`

- `factorize resnet.pt --sweep auto --data imagenet/`: the accuracy-speedup curve

- `factorize resnet.pt --rank 0.25 --dry-run`: what would be done to which layer

- `factorize resnet.pt --rank 0.25 --data imagenet/`: fitted to the outputs, in sequence

- `factorize resnet.pt --energy 0.9 --data imagenet/ --finetune 2`: tuned and tested

- `factorize net.pth --arch net.py:build --input-shape 3,32,32 --plan plan.json`: an edited plan

**Methods**

{_METHODS}

**With a budget** (`--speedup`, `--macs`, `--params`, `--max-drop`) methods and ranks are searched,
layer by layer; with one of time, no layer is replaced that is not measured faster. Exit code 3: the
budget cannot be kept, or the result is not faster. `factorize compare a/report.json b/report.json`
shows runs side by side.

**By rule** the first layer (up to 4 input channels), 1x1 convolutions and linear layers stay as
they are, unless `--include` names them; a layer whose chain would not save MACs stays too. The
reason is in the table.
"""
