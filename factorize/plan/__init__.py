"""Which method and rank for which layer. Plain tables in, plain tables out: measures nothing."""

from factorize.plan.allocate import Candidate, UnreachableBudget, allocate, prices
from factorize.plan.budget import Budget
from factorize.plan.choose import bind, check_layer, choose
from factorize.plan.lossless import lossless
from factorize.plan.plan_file import load_plan, plan_to_dict, save_plan
from factorize.plan.rule import rule_of
from factorize.plan.select import check_globs, skip_reason

__all__ = [
    "Budget",
    "Candidate",
    "UnreachableBudget",
    "allocate",
    "bind",
    "check_globs",
    "check_layer",
    "choose",
    "load_plan",
    "lossless",
    "plan_to_dict",
    "prices",
    "rule_of",
    "save_plan",
    "skip_reason",
]
