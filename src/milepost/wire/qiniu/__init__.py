"""Qiniu's wire: persistent processing and object storage.  Pure, as every wire."""
