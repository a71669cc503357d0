"""Numbers for people: counts, bytes and times, three digits each."""


def count_text(count: float) -> str:
    """1234567 -> 1.23M; three digits."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size * 0.9995:
            return f"{_three_digits(count / size)}{unit}"
    return str(count) if isinstance(count, int) else _three_digits(count)


def bytes_text(count: float) -> str:
    """1234567 -> 1.23 MB."""
    text = count_text(count)
    unit = text[-1] if text[-1] in "kMGT" else ""
    return f"{text.removesuffix(unit)} {unit.replace('k', 'K')}B"


def time_text(seconds: float) -> str:
    """3725 -> 1:02:05, 65 -> 1:05."""
    total = max(0, round(seconds))
    hours, minutes = total // 3600, total // 60 % 60
    return f"{hours}:{minutes:02}:{total % 60:02}" if hours else f"{minutes}:{total % 60:02}"


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"
