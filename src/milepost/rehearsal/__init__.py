"""A fake cloud for those who test waits: jobs that follow a script, on any wire, with the faults that real clouds have.

`scenario` reads the TOML file, `script` says what a job shows at a moment, `stage` has the jobs, `ledger` their history,
`faults` breaks answers, `record` keeps what was asked, `wires` answers with the encoders of `milepost.wire`, and `app` is all of
it as an ASGI application.
"""
