"""The measuring suite: `python -m bench`, from the root of the source tree.  Not shipped with the package.

| module | what it holds |
|---|---|
| `figures/` | what is measured, one module a figure, and the goals |
| `suite` | the rounds, the medians, the table, the history |
| `room` | what a figure works with: folders, programs it may start, and their end |
| `sketch` | SQLite alone, as the measure of a minute: what the rates stand beside |
| `engine`, `load`, `bare`, `source`, `plain` | programs of their own, started by figures |
| `million` | the database with a million finished jobs, made once |
| `machine` | what the figures depend on: cores, versions, the disk's fdatasync |
"""
