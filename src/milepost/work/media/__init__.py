"""Persistent processing of pictures, audio, video and files: commands in Qiniu's grammar, run as jobs.

| module        | what is in it                                                                     |
|---------------|-----------------------------------------------------------------------------------|
| `commands`    | what a command is, what it is given, and the registry that families add theirs to |
| `grammar`     | the text of `fops` as values: commands, pipes, `saveas`, base64, automatic keys   |
| `pfop`        | the kinds `pfop` and `fop`: pipes run, outputs stored                             |
| `tools`       | what a running command may use: remote files, limits, the children that do it     |
| `pictures`    | picture commands: their grammar                                                   |
| `vips`        | picture commands: the work, done by libvips in a child with limits                |
"""
