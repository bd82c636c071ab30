"""The wire of Huawei Cloud's services: one job shape, two forms of its entities, the errors.  Pure, both ways.

Source: chnsz/golangsdk openstack/ecs/v1, openstack/evs; huaweicloudsdkecs, huaweicloudsdkevs.
"""

from milepost.wire.huawei.errors import CloudError, Form, Refusal, Service, encode_error, job_unknown, read_error, refusal_of
from milepost.wire.huawei.jobs import (
    STATE,
    STATUS,
    Entities,
    HuaweiJob,
    decode,
    encode,
    encode_job,
    job_hex,
    order_id,
    read_job_id,
    read_order_id,
    service_of,
    show_job,
    to_view,
)

__all__ = [
    "STATE",
    "STATUS",
    "CloudError",
    "Entities",
    "Form",
    "HuaweiJob",
    "Refusal",
    "Service",
    "decode",
    "encode",
    "encode_error",
    "encode_job",
    "job_hex",
    "job_unknown",
    "order_id",
    "read_error",
    "read_job_id",
    "read_order_id",
    "refusal_of",
    "service_of",
    "show_job",
    "to_view",
]
