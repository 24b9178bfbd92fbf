"""A run as Markdown: targets first, then everything that was measured, the machine, the flags."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pilothouse.cli.bench.measure import FITTED, PAIR
from pilothouse.cli.bench.scenarios import LEAST_PAIRS, WIDE_SUFFIX
from pilothouse.cli.bench.variants import DEFAULTS

Row = Mapping[str, Any]


def render(report: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The report of `pilothouse bench`. plots: file names beside it."""
    summary = report["summary"]
    parts = [
        "# What steering and reading cost",
        _introduction(report),
        "## Targets\n\n" + _targets(report),
        "## Throughput\n\n" + _throughput(summary["throughput"]),
    ]
    parts += [f"![{name}]({name})" for name in plots]
    for title, text in (
        ("Latency", _latency(summary["throughput"])),
        ("One request after another", _singles(summary["single_requests"])),
        ("Growth", _slopes(summary["slopes"])),
        ("Prompt scores", _prompts(summary["prompt_scores"])),
        ("Memory", _memory(report["memory"])),
        ("Other implementations", _peers(summary["peers"])),
        ("Loads and flags", _loads(report)),
    ):
        if text:
            parts.append(f"## {title}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def _introduction(report: Row) -> str:
    machine, versions = report["machine"], report["versions"]
    gpu = "" if machine["accelerator"] == "none" else f", {machine['accelerator']}"
    enough = all(row["latency"] or row["pairs"] >= LEAST_PAIRS for row in report["summary"]["throughput"])
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['processor']}, {machine['cpus']} cores, {machine['memory_gb']} GB{gpu}; {packages}.\n\n"
        "Servers are started alike and stay resident; all but the one that is measured are stopped (SIGSTOP). In a "
        "round every variant is measured once, by a burst of requests, in random order; a pair is two bursts of the "
        "same round, and a ratio is of these two. Comparisons share the burst of plain vLLM that they stand beside. "
        "Given are medians over pairs with 95% bootstrap intervals. `plain vLLM again (A/A)` is a second burst to the "
        "same server of plain vLLM in every round: how far the machine alone moves the figures. Processor time is that "
        "of all processes of the server, user and system."
    ) + ("" if enough else f"\n\n**Figures of fewer than {LEAST_PAIRS} pairs are not to be quoted.**")


def _targets(report: Row) -> str:
    summary = report["summary"]
    columns = [variant.name for variant in DEFAULTS]
    found = [row for row in summary["throughput"] if "target" in row]
    by = {(row["scenario"].removesuffix(WIDE_SUFFIX), row["comparison"]): row for row in found}
    scenarios = list(dict.fromkeys(name for name, _ in by))
    rows = [
        [name, *(_met(by[name, column]) if (name, column) in by else "not measured" for column in columns)]
        for name in scenarios
    ]
    text = _table(["ratio to plain vLLM, output tokens/s", *columns], rows)
    text += "".join(
        f"\n\n{line['scenario']}: one server of ours for all columns, with room for 64 probes (`--max-probes 64`)."
        for line in report["items"]
        if line["kind"] == FITTED and set(line["our_flags"]) == {"wide"} and line["scenario"] in scenarios
    )
    times = [
        [row["comparison"], row["scenario"], f"{row['more']:+.2f} ms", f"<= {row['target']} ms", _yes(row)]
        for row in summary["single_requests"]
        if "target" in row
    ]
    if times:
        text += "\n\n" + _table(["time to the first token", "scenario", "more than plain", "target", ""], times)
    return text


def _met(row: Row) -> str:
    return f"{row['ratio']:.3f} (>= {row['target']}): {_yes(row)}"


def _yes(row: Row) -> str:
    if row["met"] is None:
        return f"too few pairs ({row['pairs']})"
    return "met" if row["met"] else "**missed**"


def _throughput(rows: Sequence[Row]) -> str:
    return _table(
        ["scenario", "comparison", "tokens/s", "ratio", "95% interval", "CPU s / 1,000 tokens", "CPU ratio", "pairs"],
        [
            [
                row["scenario"],
                row["comparison"],
                f"{row['tokens_per_second']:.0f}",
                f"{row['ratio']:.3f}",
                _interval(row),
                f"{row['cpu_per_1000']:.2f}",
                f"{row['cpu']['ratio']:.3f} ({_interval(row['cpu'])})",
                str(row["pairs"]),
            ]
            for row in rows
            if not row["latency"]
        ],
    )


def _latency(rows: Sequence[Row]) -> str:
    streamed = [row for row in rows if "ttft_ms" in row]
    if not streamed:
        return ""
    found = [
        [row["scenario"], row["comparison"], *(_change(row.get(n)) for n in _LATENCIES), str(row["pairs"])]
        for row in streamed
    ]
    head = ["scenario", "comparison", *(f"{name}, ms" for name in _LATENCIES.values()), "pairs"]
    return f"Of streamed bursts: milliseconds, and beside plain vLLM's streams.\n\n{_table(head, found)}"


_LATENCIES = {"ttft_ms": "first token p50", "itl_p50_ms": "between events p50", "itl_p99_ms": "between events p99"}


def _change(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['variant']:.1f} / {found['beside']:.1f} ({found['more']:+.2f})"


def _singles(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    head = ["scenario", "request", "ms", "plain vLLM, ms", "more, ms", "95% interval", "pairs"]
    found = [
        [
            row["scenario"],
            row["comparison"],
            f"{row['variant']:.2f}",
            f"{row['beside']:.2f}",
            f"{row['more']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
            str(row["pairs"]),
        ]
        for row in rows
    ]
    about = (
        "Time to the first token with nothing else running; a side of a pair is the median of some requests in turn."
    )
    return f"{about}\n\n{_table(head, found)}"


def _slopes(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    head = ["what grows", "slope", "of the variance explained", "points"]
    found = [
        [
            row["name"],
            f"{row['slope']:.3g} {row['unit']}",
            f"{100 * row['explained']:.0f}%",
            "; ".join(f"{x:g}: {y:.3g}" for x, y in row["points"]),
        ]
        for row in rows
    ]
    return f"Time that steering adds, µs.\n\n{_table(head, found)}"


def _prompts(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    found = [[row["variant"], f"{row['milliseconds']:.1f}", f"{row['of_cached']:.2f}"] for row in rows]
    return _table(["a prompt of 960 tokens, 8 probes", "ms", "of cached"], found)


def _memory(rows: Sequence[Row]) -> str:
    head = ["model", "weights, MB", "hooks, MB", "share", "target"]
    found = []
    for row in rows:
        parts = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in row["buffers"].items())
        total = sum(row["buffers"].values()) / 1e6
        target = f"<= {100 * row['target']:g}%: {_yes(row)}" if "target" in row else ""
        weights = f"{row['weights'] / 1e6:.0f} ({row['dtype']})"
        found.append([row["model"], weights, f"{total:.1f} ({parts})", f"{100 * row['share']:.2f}%", target])
    return f"Computed from the layout at the defaults, sites on all layers.\n\n{_table(head, found)}"


def _peers(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    found = [
        [row["scenario"], row["peer"], row["why_not"], ""]
        if "why_not" in row
        else [row["scenario"], row["peer"], f"{row['tokens_per_second']:.0f}", f"{row['ratio']:.3f}"]
        for row in rows
    ]
    text = _table(["scenario", "implementation", "tokens/s", "of plain vLLM"], found)
    about = (
        "The same batch in the same run, all servers stopped; with all cores, of which a server's worker leaves one."
    )
    return f"{about}\n\n{text}"


def _loads(report: Row) -> str:
    loads = [line for line in report["items"] if line["kind"] == FITTED]
    rows = []
    for line in loads:
        short = "" if line["tokens_out"] == line["wanted"] else f" (shortened from {line['wanted']} to fit the time)"
        rounds = len({x["number"] for x in report["items"] if x["kind"] == PAIR and x["scenario"] == line["scenario"]})
        fewer = "" if rounds == line["rounds"] else f" (of {line['rounds']}: the time was up)"
        rows.append(
            [
                line["scenario"],
                f"{line['title']}, {line['dtype']}",
                str(line["batch"]),
                str(line["tokens_in"]),
                f"{line['tokens_out']}{short}",
                f"{rounds}{fewer}",
            ]
        )
    text = _table(["scenario", "model", "requests at once", "tokens in", "tokens out", "rounds"], rows)
    text += f"\n\nAll servers run vLLM's {report['machine']['model_runner']} model runner; "
    text += "on a CPU one core is left to the processes around the worker."
    for line in loads:
        text += f"\n\n{line['scenario']}, all servers: `{' '.join(line['flags'])}`"
        text += "".join(f"; {place}: `{' '.join(flags) or 'no more'}`" for place, flags in line["our_flags"].items())
    return text


def _interval(row: Row) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
