"""The wire of OpenStack's image service, v2: tasks and images.  Pure; the server encodes and the client decodes with it.

Source: openstack/glance glance/api/v2 and the clients openstacksdk, python-glanceclient and gophercloud.
"""

from milepost.wire.glance.errors import Refusal, encode_error, read_error
from milepost.wire.glance.tasks import (
    STATE,
    STATUS,
    encode_create,
    encode_image_tasks,
    encode_task,
    encode_task_page,
    read_task,
    read_task_page,
)

__all__ = [
    "STATE",
    "STATUS",
    "Refusal",
    "encode_create",
    "encode_error",
    "encode_image_tasks",
    "encode_task",
    "encode_task_page",
    "read_error",
    "read_task",
    "read_task_page",
]
