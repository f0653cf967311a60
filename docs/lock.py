"""Which of the versions in constraints.txt the package index has: `make setup LOCK=1` installs these, and the rest from their ranges.

lock.py PYTHON CONSTRAINTS OUT: writes OUT, constraints.txt without what the index has not, and says in one line what that is.
A comment `# or torch==2.14.1 torchvision==0.29.1` names another pair that published runs were made with: it is taken where the index lacks the first."""
import functools
import subprocess
import sys
from pathlib import Path


def pinned(text):
    "The lines that pin a version"
    return [line.strip() for line in text.splitlines() if '==' in line and not line.startswith('#')]


def there(python, line):
    "Whether pip can get this version; torch and torchvision are asked for one by one, too"
    asked = [python, '-m', 'pip', 'install', '-qq', '--dry-run', '--ignore-installed', '--no-deps', line]
    return subprocess.run(asked, capture_output=True).returncode == 0


def kept(lines, has):
    "The lines that the index has; torch and torchvision are a pair: both or neither"
    found = [line for line in lines if has(line)]
    pair = [line for line in lines if line.startswith('torch')]
    return [line for line in found if line not in pair or all(p in found for p in pair)]


def other_pairs(text):
    "Further pairs of torch and torchvision with which published runs were made"
    return [line[len('# or '):].split() for line in text.splitlines() if line.startswith('# or torch==')]


def chosen(text, has):
    "The lines of the lock that this index can keep, and one line about the rest"
    lines = pinned(text)
    keeps = kept(lines, has)
    lost = [line for line in lines if line not in keeps]
    pairs = other_pairs(text) if any(line.startswith('torch') for line in lost) else []
    other = next((pair for pair in pairs if all(map(has, pair))), [])
    ranges = [line for line in lost if not (other and line.startswith('torch'))]
    said = f'LOCK=1: {len(keeps)} of {len(lines)} published versions'
    if lost: said += f'; the package index has no {", ".join(lost)}: '
    if other: said += f'{" and ".join(other)} instead, with which other published runs were made' + (', ' if ranges else '')
    if ranges: said += f'{"the rest " if other else ""}from the ranges of settings.ini instead, and numbers need not be the same to the bit'
    return keeps + other, said


def main(python, constraints, out):
    "Write the lock that this index can keep"
    keeps, said = chosen(Path(constraints).read_text(encoding='utf-8'), functools.cache(lambda line: there(python, line)))
    Path(out).write_text('\n'.join(keeps) + '\n', encoding='utf-8')
    print(said)


if __name__ == '__main__': main(*sys.argv[1:])
