"""Volumes: block storage as disk images of this server.

| module    | what it does                                                              |
|-----------|---------------------------------------------------------------------------|
| spec      | inputs and results of the kinds                                           |
| admission | what is checked and reserved at submit: states, sizes, names, quotas      |
| checks    | the checks of that, for other kinds that make or change volumes too        |
| kinds     | the kinds                                                                 |
| change    | a volume in the hands of a running job: taken, changed, given back        |
| making    | create                                                                    |
| changing  | extend, retype, delete                                                    |
| disk      | the files: made, grown, wiped, removed                                    |
| base      | images under volumes                                                      |
| live      | volumes that running machines have open                                   |
| sweep     | what is left of jobs that ended while nobody ran them                     |
"""

from __future__ import annotations

from milepost.work.volumes import kinds as kinds

__all__ = ["kinds"]
