"""Which method and rank for which layer. Plain tables in, plain tables out: measures nothing."""

from factorize.plan.choose import bind, choose
from factorize.plan.file import load_plan, plan_to_dict, save_plan

__all__ = ["bind", "choose", "load_plan", "plan_to_dict", "save_plan"]
