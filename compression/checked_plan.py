"""A plan that pruning has agreed to, and what the plan becomes once it has pruned; no torch."""

from compression.facts import CheckpointFacts
from compression.plan import Plan, make_plan, plan_for_pruned
from compression.pruning.forecast import pruned_facts
from compression.pruning.shape import pruned_shape
from compression.recipe import Recipe


def plan_checked(facts: CheckpointFacts, recipe: Recipe) -> Plan:
    """Return the plan for a checkpoint, once what pruning leaves of it fits the recipe too.

    Raises:
        RecipeError: the recipe cannot be carried out on this checkpoint.
    """
    plan = make_plan(facts, recipe)
    plan_once_pruned(plan)
    return plan


def plan_once_pruned(plan: Plan) -> Plan:
    """Return the plan for what pruning will leave: groups, units and targets must fit it.

    Raises:
        RecipeError: the recipe cannot be carried out on what is left.
    """
    if not plan.recipe.prune.is_active:
        return plan
    shape = pruned_shape(plan.recipe.prune, plan.facts.architecture)
    return plan_for_pruned(plan, pruned_facts(plan.facts, shape))
