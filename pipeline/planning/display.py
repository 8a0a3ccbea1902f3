"""A plan as tables that a person can read."""

import io
import shutil
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.budget import PETAFLOP_S_DAY
from pipeline.planning.plan import Option, Plan

WIDEST, WIDE, NARROWEST = 140, 120, 80
GIB = 2**30


def text(plan: Plan, width: int | None = None) -> str:
    """The plan in so many columns; the terminal's, at most 140, when not given."""
    width = width or min(WIDEST, max(NARROWEST, shutil.get_terminal_size((100, 40)).columns))
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False)
    console.print(Group(*sections(plan, width)))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(lines).strip("\n")


def sections(plan: Plan, width: int) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(headline(plan)), facts(plan)]
    parts += [Text(f"Memory of a rank in GiB ({memory_headline(plan)})"), memory_table(plan, width)]
    if width < WIDE and plan.options[0].recomputed is not None:
        parts += [Text("The same with every block recomputed (model.checkpoint_blocks 1)"), recomputed_table(plan)]
    if plan.optimum is not None:
        parts += [Text(f"What others found best for as many FLOPs ({plan.flops:.3g})"), optimum_table(plan)]
    parts += [Text(f"note: {note}") for note in plan.notes]
    parts += [Text(f"cannot be: {sentence}") for sentence in plan.refusals]
    return parts


def headline(plan: Plan) -> str:
    layout = f"{plan.nodes} node(s) x {plan.devices}" if plan.nodes > 1 else f"{plan.devices}"
    return f"{plan.run_directory} on {layout} {plan.hardware.name}, {plan.precision}; figures: {plan.hardware_source}"


def figures_of(flops: float) -> str:
    return f"{flops:.4g} = {flops / PETAFLOP_S_DAY:.4g} petaflop/s-days"


def facts(plan: Plan) -> Table:
    """What is one figure, or a few."""
    work, table = plan.work, grid(("left", "left"))
    counts = plan.parameters
    blocks = ", ".join(
        f"{block.name} {block.blocks} x {short(block.parameters / block.blocks)}" if block.blocks > 1 else f"{block.name} {short(block.parameters)}"
        for block in plan.blocks
    )  # fmt: skip
    rows = [
        ("parameters", f"{counts['total']:,}; without embeddings {counts['non_embedding']:,}"),
        ("by block", blocks),
        (
            "FLOPs a token",
            f"{plan.flops_per_token['dense']:.4g} (6 N), {plan.flops_per_token['exact']:.4g} (exact, with attention)",
        ),
    ]
    if work.tokens is not None and work.steps is not None and plan.flops is not None and plan.dense_flops is not None:
        rows += [
            ("training", f"{work.tokens:,} tokens in {work.steps:,} steps of {work.batch_tokens:,}"),
            ("FLOPs", f"{figures_of(plan.dense_flops)} (6 N), {figures_of(plan.flops)} (exact)"),
        ]
    if work.epochs is not None and work.train_tokens is not None:
        epochs = ", ".join(f"{name} {value:.3g}" for name, value in work.epochs.items())
        rows += [("epochs", f"{epochs}, of {work.train_tokens:,} tokens there are")]
    if plan.seconds is not None and plan.gpu_hours is not None and plan.step_seconds is not None:
        rate = work.batch_tokens / plan.step_seconds
        device = "GPU-hours" if plan.hardware.kind == "cuda" else "hours of a process"
        rows += [
            ("time", f"{duration(plan.seconds)} at {plan.mfu:.1%} MFU: {seconds(plan.step_seconds)} a step, {rate:,.0f} tokens/s"),
            ("use", f"{plan.gpu_hours:,.4g} {device}, ${plan.cost:,.0f} at ${plan.price_per_hour:.2f} an hour, {plan.energy_kwh:,.4g} kWh at {plan.power_watts:.0f} W"),
        ]  # fmt: skip
        if plan.requeues is not None and plan.time_limit_seconds:
            rows += [("requeues", f"{plan.requeues} with jobs of {duration(plan.time_limit_seconds)}")]
    shards = "" if work.shard_bytes is None else f"; shards {size(work.shard_bytes)}"
    rows += [
        ("disk", f"{size(plan.disk_bytes)} for {plan.checkpoints} checkpoints of {size(plan.state_bytes)}{shards}")
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def memory_headline(plan: Plan) -> str:
    room = plan.hardware.fits_bytes / GIB
    return (
        f"micro-batch {plan.work.micro_batch} x {plan.work.context} tokens; {plan.hardware.name} has {room:.1f} for it"
    )


def memory_table(plan: Plan, width: int) -> Table:
    wide = width >= WIDE
    names = ["weights", "gradients", "optimizer", "activations", "logits", "buffers"]
    heads = names if wide else ["weight", "grad", "optim", "activ", "logits", "buffer"]
    # Bold is lost where the output is no terminal, so the run's own layout has a sign, too.
    recomputing = wide and any(option.recomputed is not None for option in plan.options)
    table = figures(["", *heads, "total", "fits", "largest", *(["recomputed", "largest"] if recomputing else [])])
    for option in plan.options:
        parts = option.memory.parts()
        row = [layout_name(option), *(gib(parts[name]) for name in names), gib(option.memory.total)]
        row += ["yes" if option.fits else "no", largest(option.micro_batch)]
        if recomputing and option.recomputed is not None:
            row += [gib(option.recomputed.total), largest(option.micro_batch_recomputed or 0)]
        table.add_row(*row)
    return table


def recomputed_table(plan: Plan) -> Table:
    table = figures(["", "activ", "total", "largest"])
    for option in plan.options:
        assert option.recomputed is not None
        parts = option.recomputed.parts()
        table.add_row(
            layout_name(option),
            gib(parts["activations"]),
            gib(option.recomputed.total),
            largest(option.micro_batch_recomputed or 0),
        )
    return table


def layout_name(option: Option) -> str:
    return f"{'> ' if option.chosen else '  '}{option.layout.name}"


def figures(heads: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2 if len(heads) > 10 else 1, 0, 0), header_style="")
    for number, name in enumerate(heads):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def optimum_table(plan: Plan) -> Table:
    table = grid(("left", "right", "right", "right"))
    table.add_row("", "parameters", "tokens", "tokens / parameter")
    assert plan.optimum is not None
    assert plan.work.tokens is not None
    own = plan.parameters["total"]
    table.add_row("this run", short(own), short(plan.work.tokens), f"{plan.work.tokens / own:.3g}")
    for name, found in plan.optimum.items():
        table.add_row(name, short(found.parameters), short(found.tokens), f"{found.tokens / found.parameters:.3g}")
    return table


def grid(justify: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for number, side in enumerate(justify):
        table.add_column(justify=side, no_wrap=number == 0)  # pyright: ignore[reportArgumentType]
    return table


def gib(value: float) -> str:
    amount = value / GIB
    return (
        f"{amount:.0f}"
        if amount >= 1000
        else f"{amount:.1f}"
        if amount >= 10
        else f"{amount:.2f}"
        if amount >= 0.005 or not amount
        else "<0.01"
    )


def largest(micro_batch: int) -> str:
    return str(micro_batch) if micro_batch else "none"


def short(value: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def size(value: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value / 1e3:.3g} kB"


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def duration(value: float) -> str:
    """In the two largest units."""
    days, rest = divmod(round(value), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s" if minutes else f"{value:.3g} s"
