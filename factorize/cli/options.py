"""The options of the command line, grouped as `--help` shows them."""

from __future__ import annotations

# fmt: off
from pathlib import Path
from typing import Annotated

import typer

from factorize import methods
from factorize.cli.help import show_help
from factorize.cli.numbers import option_number
from factorize.cli.run_file import read_run_file
from factorize.measure import runtimes
from factorize.measure.environment import package_version
from factorize.outputs import OUTPUT_KINDS
from factorize.tune import TRACKERS

_MODEL, _CHOICE, _BUDGET, _TARGET, _DATA, _FIT, _TUNING, _RUN = (
    "The model", "What to do to it", "Or: a budget to keep", "Where time is measured", "Images",
    "The fit", "Fine-tuning", "The run",
)  # fmt: skip

Model = Annotated[str, typer.Argument(
    metavar="MODEL", help="A checkpoint (.pt .pth .th .safetensors), a pickled module, an ONNX "
    "file (.onnx), an exported program (.pt2), a folder of timm or transformers, "
    "torchvision:NAME, timm:NAME, hf:ORG/NAME, or digits.", show_default=False)]
Rank = Annotated[str | None, typer.Option(
    help="An integer for all layers (clamped to each layer's maximum), a share of the maximum "
    "such as 0.25, or vbmf.", rich_help_panel=_CHOICE)]
Energy = Annotated[float | None, typer.Option(
    help="Share of each kernel's squared norm to keep, such as 0.95; instead of --rank.",
    rich_help_panel=_CHOICE)]
Lossless = Annotated[bool, typer.Option(
    "--lossless", help="Replace only layers that a cheaper chain reproduces exactly (to 1e-6), "
    "such as Sobel, Gaussian and box filters; by any method, or those of --method.",
    rich_help_panel=_CHOICE)]
Method = Annotated[str | None, typer.Option(
    metavar="NAME", help=f"{' | '.join(methods.names())}. With a budget also several with commas "
    "between them, and auto, the default then: the best one for each layer. Else: spatial_svd, "
    "and channel_svd for 1-D and linear layers.", rich_help_panel=_CHOICE)]
Plan = Annotated[Path | None, typer.Option(
    help="A plan.json of an earlier run, perhaps edited, instead of --rank and --method.",
    rich_help_panel=_CHOICE)]
Int8 = Annotated[str | None, typer.Option(
    "--int8", metavar="[all]", help="Make model.onnx compute in 8-bit integers: chains are fitted "
    "for it, and the ranges come from --data's images. Layers that are slower or lose too much in "
    "integers stay in float, unless you say --int8 all. The report shows int8 without "
    "factorization beside it.",
    rich_help_panel=_CHOICE)]
Plugin = Annotated[list[str] | None, typer.Option(
    "--plugin", metavar="FILE", help="A .py file or a module that registers a method or a runtime "
    "of your own; repeatable.", rich_help_panel=_CHOICE)]
Include = Annotated[list[str] | None, typer.Option(
    metavar="GLOB",
    help="Only layers whose name matches; repeatable. Overrides the rules for first layers, "
    "1x1 convolutions and linear layers.", rich_help_panel=_CHOICE)]
Exclude = Annotated[list[str] | None, typer.Option(
    metavar="GLOB", help="Not the layers whose name matches; repeatable.",
    rich_help_panel=_CHOICE)]
AllowCostlier = Annotated[bool, typer.Option(
    "--allow-costlier", help="Replace a layer even if that saves no MACs.",
    rich_help_panel=_CHOICE)]
DryRun = Annotated[bool, typer.Option(
    "--dry-run", help="Show the table of layers and write nothing.", rich_help_panel=_CHOICE)]
Speedup = Annotated[float | None, typer.Option(
    parser=option_number, metavar="X",
    help="So many times as fast (2, 2x), measured on --target, at the least loss of accuracy.",
    rich_help_panel=_BUDGET)]
Macs = Annotated[str | None, typer.Option(
    metavar="SHARE",
    help="Share of the net's MACs to keep, such as 0.5 or 50%. Several, such as 0.5,0.3,0.2, are "
    "searched in one run: the curve is in the report.", rich_help_panel=_BUDGET)]
Params = Annotated[float | None, typer.Option(
    parser=option_number, metavar="SHARE", help="Share of the net's parameters to keep.",
    rich_help_panel=_BUDGET)]
MaxDrop = Annotated[float | None, typer.Option(
    parser=option_number, metavar="POINTS",
    help="As fast as possible without losing more than this on held-out training images, before "
    "any fine-tuning: points of top-1, or what --score is in.", rich_help_panel=_BUDGET)]
Sensitivity = Annotated[str, typer.Option(
    metavar="HOW",
    help="What a layer's loss is predicted by: error (of its output, weighed by how much of it "
    "comes out of the net) | kl (of the net's output with that layer replaced; slower, needs "
    "--data).", rich_help_panel=_BUDGET)]
Sweep = Annotated[str | None, typer.Option(
    metavar="X,Y,..",
    help="Search for each of these speedups, or auto: the accuracy-speedup curve is in the "
    "report.", rich_help_panel=_BUDGET)]
Pick = Annotated[str | None, typer.Option(
    metavar="X",
    help="The point of --sweep or of several --macs to export: one of them, or knee (default).",
    rich_help_panel=_BUDGET)]

RuntimeTarget = Annotated[str | None, typer.Option(
    "--target", metavar="NAME[:DEVICE]", help=f"{' | '.join(runtimes.names())}. Default: "
    "onnxruntime. With a device of OpenVINO, as openvino:GPU, or a provider of ONNX Runtime, as "
    "onnxruntime:CUDA.", rich_help_panel=_TARGET)]
Also = Annotated[list[str] | None, typer.Option(
    "--also", metavar="NAME[:DEVICE]", help="Another target on which no layer may be slower; "
    "repeatable. The report has the times on each.", rich_help_panel=_TARGET)]
ProviderOption = Annotated[list[str] | None, typer.Option(
    "--provider-option", metavar="K=V", help="Of --target's provider or device, such as "
    "PERFORMANCE_HINT=THROUGHPUT for openvino; repeatable.", rich_help_panel=_TARGET)]
OpenVinoXml = Annotated[bool, typer.Option(
    "--openvino-xml", help="Write model.xml and model.bin too, for OpenVINO.",
    rich_help_panel=_RUN)]
Times = Annotated[list[Path] | None, typer.Option(
    "--times", metavar="FILE",
    help="A times.json that bench.py of factorize kit wrote on another device: the search is for "
    "that device, and nothing is timed here. Repeatable: give the file of the first kit, and that "
    "of a kit of its best nets.",
    rich_help_panel=_TARGET)]
Arch = Annotated[str | None, typer.Option(
    metavar="REF",
    help="What a state dict belongs to, where it is not recognised: torchvision:NAME, "
    "timm:NAME, package.module:function or path/file.py:function.", rich_help_panel=_MODEL)]
ArchArgs = Annotated[str | None, typer.Option(
    metavar="JSON", help="Its keyword arguments, such as '{\"num_classes\": 10}'.",
    rich_help_panel=_MODEL)]
Weights = Annotated[str | None, typer.Option(
    help="With torchvision:NAME or timm:NAME, trained weights to download, such as DEFAULT.",
    rich_help_panel=_MODEL)]
Key = Annotated[str | None, typer.Option(
    metavar="NAME", help="Which weights of the file to take, such as params_ema; dots for nested "
    "ones. A note names those that it has.", rich_help_panel=_MODEL)]
TrustPickle = Annotated[bool, typer.Option(
    "--trust-pickle", help="Load a pickle with classes from anywhere. It can run any code.",
    rich_help_panel=_MODEL)]
InputShape = Annotated[str | None, typer.Option(
    metavar="C,H,W",
    help="Shape of one input, also C,L or C,D,H,W; known for torchvision's classifiers and taken "
    "from --data. Several inputs of an ONNX file by name: image=1x3x480x640,mask=1x1x480x640.",
    rich_help_panel=_MODEL)]
Data = Annotated[str | None, typer.Option(
    metavar="SOURCE",
    help="A folder in ImageFolder layout (train/, val/ or test/), a folder of images, .npz "
    "with images and labels or a folder of them, digits, module:function that returns loaders, "
    "or synthetic: images made up, which is the default.", rich_help_panel=_DATA)]
Mean = Annotated[str | None, typer.Option(
    metavar="A,B,C", help="Subtracted per channel from pixels in 0..1, or 0..SCALE.",
    rich_help_panel=_DATA)]
Std = Annotated[str | None, typer.Option(
    metavar="A,B,C", help="Divided by, per channel.", rich_help_panel=_DATA)]
Scale = Annotated[float | None, typer.Option(
    help="What white is for the model, and what --mean and --std are in: 255 where it takes pixels "
    "as they are. Default: 1.", rich_help_panel=_DATA)]
Resize = Annotated[int | None, typer.Option(
    help="Shorter side in pixels.", rich_help_panel=_DATA)]
Crop = Annotated[int | None, typer.Option(
    help="Side of the central crop in pixels.", rich_help_panel=_DATA)]
BatchSize = Annotated[int, typer.Option(
    min=1, help="Images per batch.", rich_help_panel=_DATA)]
Workers = Annotated[int | None, typer.Option(
    min=0, max=256, metavar="N", help="Processes that read images; default: up to 8 for a folder "
    "of images where there is a GPU, else none.", rich_help_panel=_DATA)]
SkipBad = Annotated[int, typer.Option(
    min=0, metavar="N", help="Leave up to N corrupt images out; each is named in the report.",
    rich_help_panel=_DATA)]
Evaluate = Annotated[str | None, typer.Option(
    metavar="REF",
    help="Your own measure, module:function or path/file.py:function: model -> number or "
    "{name: number}, for the report. Set higher_is_better = False on it where that is so.",
    rich_help_panel=_DATA)]
Outputs = Annotated[str | None, typer.Option(
    metavar="KIND",
    help=f"What the model puts out: {' | '.join(OUTPUT_KINDS)}. Default: a guess, which is told.",
    rich_help_panel=_DATA)]
Loss = Annotated[str | None, typer.Option(
    metavar="REF",
    help="Your own loss, module:function or path/file.py:function: (student's output, original's "
    "output, batch) -> tensor with one value, for tuning and choosing.", rich_help_panel=_DATA)]
Score = Annotated[str | None, typer.Option(
    metavar="REF",
    help="Your own score for a batch, with the same arguments -> number: the best epoch is chosen "
    "by it, and --max-drop is in it. Set higher_is_better = False on it where that is so.",
    rich_help_panel=_DATA)]
Fit = Annotated[str | None, typer.Option(
    metavar="HOW",
    help="What the chains are fitted to: weights | outputs (of each layer) | sequential "
    "(outputs, given the input from the layers fitted before). Default: sequential; weights "
    "where the model takes no images.", rich_help_panel=_FIT)]
CalibrationImages = Annotated[int, typer.Option(
    min=2, metavar="N", help="Training images to fit to; no labels. Every fifth is held out.",
    rich_help_panel=_FIT)]
CalibrationMemory = Annotated[float, typer.Option(
    metavar="GB",
    help="For moments and activations; where they need more, there are more passes.",
    rich_help_panel=_FIT)]
SaveCalibration = Annotated[Path | None, typer.Option(
    metavar="FILE", help="Write the moments of the layers' inputs (.safetensors).",
    rich_help_panel=_FIT)]
Calibration = Annotated[Path | None, typer.Option(
    metavar="FILE", help="Fit to the moments in such a file: no images are needed.",
    rich_help_panel=_FIT)]
Reconstruct = Annotated[bool | None, typer.Option(
    "--reconstruct/--no-reconstruct",
    help="Then tune the factors of each block together on its output in the original; takes "
    "minutes. Default: of small models on made-up images.", rich_help_panel=_FIT)]
Finetune = Annotated[int | None, typer.Option(
    metavar="EPOCHS", min=0,
    help="Epochs of distillation from the original; labels are used where there are any, and the "
    "original is tuned alike, to compare. Ctrl-C keeps the best so far. Default: 0, and 1 for "
    "digits by itself.",
    rich_help_panel=_TUNING)]
Lr = Annotated[float | None, typer.Option(
    help="Peak learning rate.", rich_help_panel=_TUNING)]
Recipe = Annotated[Path | None, typer.Option(
    metavar="FILE", help="A .toml or .json file of settings: optimizer, schedule, augmentation, "
    "distillation, averaging, precision, ...; see FinetuneConfig. Options win.",
    rich_help_panel=_TUNING)]
Stages = Annotated[int, typer.Option(
    min=1, max=100, metavar="N", help="Cut in N rounds and tune after each.",
    rich_help_panel=_TUNING)]
TensorBoard = Annotated[Path | None, typer.Option(
    metavar="DIR", help="Write scalars for TensorBoard there.", rich_help_panel=_TUNING)]
Tracker = Annotated[str | None, typer.Option(
    metavar="NAME", help=f"{' | '.join(TRACKERS)}: follow the fine-tuning there, through "
    "accelerate.", rich_help_panel=_TUNING)]
Resume = Annotated[bool, typer.Option(
    "--resume", help="Go on with an interrupted fine-tuning in --out.", rich_help_panel=_TUNING)]
Out = Annotated[Path | None, typer.Option(
    metavar="DIR", help="Folder for all files. Default: NAME-factorized beside the model.",
    rich_help_panel=_RUN)]
Force = Annotated[bool, typer.Option(
    "--force", help="Overwrite the files of an earlier run.", rich_help_panel=_RUN)]
Opset = Annotated[int | None, typer.Option(
    metavar="N", help="Version of model.onnx's operators; default: the exporter's own.",
    rich_help_panel=_RUN)]
InputNames = Annotated[str | None, typer.Option(
    metavar="A,B", help="Of model.onnx; default: those of forward's parameters.",
    rich_help_panel=_RUN)]
OutputNames = Annotated[str | None, typer.Option(
    metavar="A,B", help="Of model.onnx; default: the keys of a dict, else output.",
    rich_help_panel=_RUN)]
OnnxFloat16 = Annotated[bool, typer.Option(
    "--onnx-float16", help="Weights of model.onnx in float16; inputs and outputs stay float32.",
    rich_help_panel=_RUN)]
Device = Annotated[str, typer.Option(
    help="auto, cpu or cuda.", rich_help_panel=_RUN)]
Threads = Annotated[int | None, typer.Option(
    min=1, max=4096, help="CPU threads; default: all cores.", rich_help_panel=_TARGET)]
Batch = Annotated[int, typer.Option(
    min=1, max=65536, help="Samples per call.", rich_help_panel=_TARGET)]
Dtype = Annotated[str, typer.Option(
    help=f"{' | '.join(runtimes.dtypes())}; others than float32 with "
    "--target cuda or openvino.",
    rich_help_panel=_TARGET)]
Compile = Annotated[bool, typer.Option(
    "--compile", help="With --target cuda: torch.compile with CUDA graphs, not eager mode.",
    rich_help_panel=_TARGET)]
Refresh = Annotated[bool, typer.Option(
    "--refresh", help="Measure the time of layers, and fit for a search, anew: the cache folder of "
    "the user has both.",
    rich_help_panel=_TARGET)]
Seed = Annotated[int, typer.Option(
    min=0, max=2**63 - 1, rich_help_panel=_RUN)]

Verbose = Annotated[bool, typer.Option(
    "--verbose", "-v", help="A line for each layer that is timed or fitted, and how long it took.",
    rich_help_panel=_RUN)]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"factorize {package_version('factorize') or '(not installed)'}")
        raise typer.Exit


def _help(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        show_help(context)
        raise typer.Exit


def _help_all(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(context.get_help())
        raise typer.Exit


Config = Annotated[Path | None, typer.Option(
    "--config", metavar="FILE", callback=read_run_file, is_eager=True, help="A .toml file of "
    "options by their long names, and model; the command line wins over it. Each run writes the "
    "run.toml that repeats it.", rich_help_panel=_RUN)]
Help = Annotated[bool, typer.Option(
    "--help", callback=_help, is_eager=True, help="Show the main options.", rich_help_panel=_RUN)]
HelpAll = Annotated[bool, typer.Option(
    "--help-all", callback=_help_all, is_eager=True, help="Show all options, methods and exit "
    "codes.", rich_help_panel=_RUN)]
Version = Annotated[bool, typer.Option(
    "--version", callback=_version, is_eager=True, help="Show the version.", rich_help_panel=_RUN)]
