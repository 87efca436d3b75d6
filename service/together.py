"""Which of the jobs that wait run together; it does not know when."""

from collections.abc import Sequence

from service.job import Job, Result, are_alike

_OVERTAKEN_S = 0.05  # of work that a run may hold if it takes some that came after others which it leaves waiting


def together(first: Job[Result], waiting: Sequence[Job[Result]], most_s: float) -> list[Job[Result]]:
    """Return the jobs of a run that begins with one of them.

    Those of its key that cost about as much; where others of about that cost are left waiting, none that came later
    than these join a run that takes long.

    Args:
        first: The job whose turn it is.
        waiting: The jobs that wait, in the order in which they came, this one too.
        most_s: How many seconds they may be expected to take.
    """
    jobs, all_s = [first], first.cost_s
    low_s = high_s = first.cost_s
    for job in waiting:
        if job is first:
            continue
        low, high = min(low_s, job.cost_s), max(high_s, job.cost_s)
        if all_s + job.cost_s <= most_s and are_alike(low, high) and _joins(job, jobs):
            jobs.append(job)
            all_s, low_s, high_s = all_s + job.cost_s, low, high
        elif are_alike(job.cost_s, first.cost_s):
            most_s = min(most_s, _OVERTAKEN_S)
    return jobs


def _joins(job: Job[Result], jobs: Sequence[Job[Result]]) -> bool:
    """Tell whether a job can run with others that will."""
    first = jobs[0]
    if job.alone or first.alone or first.work.key is None or job.work.key != first.work.key:
        return False
    return bool(job.work.fits([each.work for each in jobs]))
