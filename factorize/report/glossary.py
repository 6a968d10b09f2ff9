"""The words of a report, explained where they stand."""

from __future__ import annotations

from factorize import methods

TERMS = {
    "MACs": "Multiply-accumulates for one sample: a measure of the work, not of the time.",
    "params": "Numbers that the net has learned, its weights and biases.",
    "speedup": "Time of the original over that of the result, both run in turns; the median over "
    "pairs of runs.",
    "spread": "Eight of ten pairs of runs lie within: the first number is the tenth percentile, "
    "the second the ninetieth. Far apart, they tell of a busy machine.",
    "agreement": "Share of images for which the result names the same class as the original.",
    "top-1": "Share of images whose likeliest class is the right one.",
    "top-5": "Share of images whose right class is among the five likeliest.",
    "KL": "Divergence of the result's probabilities from the original's, in nats; nought where "
    "both are alike.",
    "rel. difference": "How far the outputs are from the original's, relative to their size.",
    "rank": "How wide the chain is inside: a higher rank is more exact and costs more.",
    "method": "The kind of chain that replaces a convolution.",
    "dense": "A convolution as it was, not replaced.",
    "error": "How far a layer's output is from the original's, relative to its size, on the "
    "images fitted to; without images, of its weights.",
    "held-out": "The same on images that were not fitted to.",
    "predicted": "Added up from the times of the layers, before the net was measured.",
    "searched": "A net in which each layer has the method and rank that lose least within the "
    "budget.",
    "uniform": "For comparison: one method at the same share of its largest rank everywhere.",
    "int8 alone": "The original in 8-bit integers, not factorized: what one could have without "
    "this tool.",
    "picked": "The net that was exported.",
    "rewritten": "Chains in place of layers, nothing trained yet.",
    "recalibrated": "Statistics of batch norms computed anew on the images.",
    "finetuned": "Trained to answer as the original does.",
    "original, tuned alike": "The original, trained in the same way: what it gains is not the "
    "factorization's.",
}


def terms() -> dict[str, str]:
    """What each term means; methods by their summaries."""
    return TERMS | {name: methods.get(name).summary for name in methods.names()}
