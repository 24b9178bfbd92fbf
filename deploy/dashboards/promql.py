"""The pieces that the panels' queries are put together from."""

from collections.abc import Sequence

MODEL = 'model_name=~"$model"'
PROBE = 'probe=~"$probe"'
STEERING = 'steering=~"$steering"'
VECTOR = 'vector=~"$vector"'
WINDOW = "$__rate_interval"


def select(metric: str, *matchers: str) -> str:
    """The series of a metric, those of the chosen models."""
    return f"{metric}{{{','.join((MODEL, *matchers))}}}"


def total(by: Sequence[str], query: str) -> str:
    """The sum of a query by labels; of everything without them."""
    return f"sum by ({', '.join(by)}) ({query})" if by else f"sum({query})"


def rate(metric: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """Of a counter, a second."""
    return total(by, f"rate({select(metric, *matchers)}[{WINDOW}])")


def grown(metric: str, *matchers: str, by: Sequence[str] = (), window: str = "$__range") -> str:
    """By how much a counter grew in all."""
    return total(by, f"increase({select(metric, *matchers)}[{window}])")


def latest(metric: str, *matchers: str, by: Sequence[str], of: str = "max") -> str:
    """Of a gauge; where several processes show it, the largest."""
    return f"{of} by ({', '.join(by)}) ({select(metric, *matchers)})"


def quantile(share: float, metric: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """Of a histogram, interpolated within its buckets."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', *matchers, by=('le', *by))})"


def mean(metric: str, *matchers: str, by: Sequence[str] = ()) -> str:
    """Of what a histogram was told."""
    return f"{rate(f'{metric}_sum', *matchers, by=by)} / ({rate(f'{metric}_count', *matchers, by=by)} > 0)"


def share(part: str, whole: str) -> str:
    """0 where there is a whole and no part of it: a label's series begins with the first count."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def flagged_share(*by: str) -> str:
    """Of the scored choices, by model and probe, or fewer labels."""
    metric = "pilothouse_probe_requests_total"
    return share(rate(metric, PROBE, 'flagged="true"', by=by), rate(metric, PROBE, by=by))


def past_threshold(*matchers: str) -> str:
    """The share of scores past the probe's threshold, by probe and steering.

    The histogram has a bucket that ends at the threshold exactly; `count_values` makes a label of the threshold, by
    which that bucket is found. Servers may differ in it for as long as a new version is rolled out.
    """
    by = ("model_name", "probe", "steering")
    bucket = f"rate({select('pilothouse_probe_score_bucket', *matchers)}[{WINDOW}])"
    ends = f'count_values by (model_name, probe, instance) ("le", {select("pilothouse_probe_threshold", PROBE)})'
    # It writes 1 where the bucket's end is written 1.0.
    ends = f'label_replace({ends}, "le", "$1.0", "le", "([0-9]+)")'
    up_to = total(by, f"{bucket} and on (model_name, probe, instance, le) {ends}")
    below = f"({up_to} / ({rate('pilothouse_probe_score_count', *matchers, by=by)} > 0))"

    def alarm(side: str) -> str:
        info = select("pilothouse_probe_info", PROBE, f'alarm="{side}"')
        return f"on (model_name, probe) {info}"

    return f"(1 - {below} and {alarm('high')}) or ({below} and {alarm('low')})"
