"""Days, weeks, months and active hours against Python's zoneinfo, around every change of every zone's clocks from 2000 to 2037.

What is expected is worked out the slow way, from what zoneinfo says a clock shows at an instant. Both sides have the same release of
the time zone database: PyPI's tzdata here, the one that is compiled in there (tests/requirements.txt pins it).
"""

import bisect
import os
import sys
from datetime import UTC, date, datetime, timedelta

os.environ["PYTHONTZPATH"] = ""  # not what this machine has installed

from zoneinfo import ZoneInfo, available_timezones  # noqa: E402

from ask import ask  # noqa: E402

DAY = 86_400
BEGIN, END = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2000, 2038))
HOURS = [(9 * 60, 18 * 60), (22 * 60, 6 * 60), (2 * 60, 3 * 60), (0, 1)]
EPOCH = date(1970, 1, 1)


def offset(zone, at):
    return int(datetime.fromtimestamp(at, zone).utcoffset().total_seconds())


def changes(zone):
    """The instants at which the zone's offset changes."""
    found = []
    for at in range(BEGIN, END, DAY):
        low, high = at, at + DAY
        before, after = offset(zone, low), offset(zone, high)
        if before == after:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if offset(zone, middle) == before:
                low = middle
            else:
                high = middle
        found.append(high)
    return found


def day_of(zone, at):
    return (at + offset(zone, at)) // DAY


def first_instants(zone, near, first, last):
    """The first instant of each date from `first` to `last` (days since the epoch) that the zone has."""
    offsets = {offset(zone, at) for change in near for at in (change - 1, change)} or {offset(zone, first * DAY)}
    starts = {}
    for day in range(first, last + 1):
        candidates = [day * DAY - shift for shift in offsets] + list(near)
        shown = [at for at in candidates if day_of(zone, at) == day]
        if shown:
            starts[day] = min(shown)
    return starts


def edges(starts, wanted, at, until):
    """Of the first instants of `wanted` dates the last not after `at` to the first not before `until`; a skipped date begins with the next."""
    instants = sorted({next(starts[later] for later in sorted(starts) if later >= day) for day in wanted if day <= max(starts)})
    first = bisect.bisect_right(instants, at) - 1
    last = bisect.bisect_left(instants, until)
    return instants[first : last + 1]


def shows(zone, at, start, end):
    minute = (at + offset(zone, at)) % DAY // 60
    return start <= minute < end if start < end else minute >= start or minute < end


def main():
    windows = []
    named = {}
    for name in sorted(available_timezones() - {"localtime", "Factory"}):
        zone = ZoneInfo(name)
        all_changes = changes(zone)
        # Links have the changes of what they link to; one of them is enough. But every name has to be known there.
        key = (tuple(all_changes), offset(zone, BEGIN), offset(zone, END))
        asked = [BEGIN + 3 * DAY] if key in named else all_changes or [BEGIN + 3 * DAY]
        named.setdefault(key, name)
        windows += [(name, zone, change, all_changes) for change in asked]
    questions = [
        {"zone": name, "from": change - 2 * DAY, "until": change + 2 * DAY, "hours": HOURS} for name, _, change, _ in windows
    ]
    differences = 0
    checked = 0
    for (name, zone, change, all_changes), question, answer in zip(windows, questions, ask(questions), strict=True):
        begin, until = question["from"], question["until"]
        near = [other for other in all_changes if abs(other - change) < 40 * DAY]
        first, last = day_of(zone, begin) - 33, day_of(zone, until) + 33
        starts = first_instants(zone, near or all_changes[:1] or [begin], first, last)
        dates = {day: EPOCH + timedelta(days=day) for day in range(first, last + 1)}
        expected = {
            "days": edges(starts, list(dates), begin, until),
            "weeks": edges(starts, [day for day, shown in dates.items() if shown.weekday() == 0], begin, until),
            "months": edges(starts, [day for day, shown in dates.items() if shown.day == 1], begin, until),
        }
        for what, instants in expected.items():
            checked += 1
            if answer[what] != instants:
                differences += 1
                print(f"{name}, {what} around {change}: {answer[what]}, expected {instants}", file=sys.stderr)
        for (start, end), open_spans in zip(HOURS, answer["open"], strict=True):
            at_edges = [at + near for span in open_spans for at in span for near in (-1, 0)]
            samples = [*at_edges, *range(change - 7_200, change + 7_200, 613), change - 1, change]
            for at in samples:
                if not begin <= at < until:
                    continue
                checked += 1
                is_open = any(low <= at < high for low, high in open_spans)
                if is_open != shows(zone, at, start, end):
                    differences += 1
                    print(f"{name}, {start}-{end} at {at}: {is_open}, expected {not is_open}", file=sys.stderr)
    print(f"{len(windows)} windows of {len(named)} zones, {checked} answers, {differences} differences")
    # A run that compared little proves little: there are more than 150 zones with different clocks, and most changed them often.
    return 0 if differences == 0 and len(windows) > 5_000 and len(named) > 150 else 1


sys.exit(main())
