"""Drives a running emulator with the vendor's SDKs.

    driver.py API METADATA CONTROL drive     the life of route entries and tables, as a controller would live it
    driver.py API METADATA CONTROL codes     provokes every error code of codes.json

Each prints one JSON object per line for what it saw; whoever runs it judges. Every call is made by three clients: the vendor's new SDK with
signature version 3, the same with version 1, and the old SDK.
"""

import copy
import importlib
import json
import sys
import time
import unittest.mock
import urllib.request
from pathlib import Path

from alibabacloud_ecs20140526 import models as ecs_models
from alibabacloud_ecs20140526.client import Client as EcsClient
from alibabacloud_tea_openapi import utils as tea_utils
from alibabacloud_tea_openapi import utils_models
from alibabacloud_vpc20160428 import models as vpc_models
from alibabacloud_vpc20160428.client import Client as VpcClient
from aliyunsdkcore.acs_exception.exceptions import ServerException
from aliyunsdkcore.auth.credentials import StsTokenCredential
from aliyunsdkcore.client import AcsClient
from aliyunsdkcore.utils import parameter_helper
from darabonba.exceptions import DaraException
from darabonba.runtime import RuntimeOptions

REGION = "cn-hangzhou"
KEY = {"id": "testid", "secret": "testsecret"}
DEADLINE_S = 20
# What is answered while another change of the VPC is under way.
BUSY = ("TaskConflict", "IncorrectRouteEntryStatus", "IncorrectStatus.RouteTableStatus", "IncorrectVSwitchStatus")


def snake(name):
    """`VSwitchId` is `v_switch_id` in the new SDK."""
    out = ""
    for at, char in enumerate(name):
        after_lower = at > 0 and not name[at - 1].isupper()
        before_lower = 0 < at < len(name) - 1 and name[at + 1].islower()
        out += ("_" if char.isupper() and (after_lower or before_lower) else "") + char.lower()
    return out


class Refused(Exception):
    """The server's error answer, as the SDK gave it."""

    def __init__(self, code, status, message, retry_after=None):
        super().__init__(f"{code} ({status}): {message}")
        self.code, self.status, self.message, self.retry_after = code, status, message, retry_after


class Tea:
    """The new SDK."""

    def __init__(self, name, api, key, version_1):
        config = {
            "access_key_id": key["id"],
            "access_key_secret": key["secret"],
            "security_token": key.get("token"),
            "endpoint": api,
            "protocol": "HTTP",
            "region_id": REGION,
        }
        if version_1:
            config["signature_algorithm"] = "v2"
        self.name = name
        self.vpc = VpcClient(utils_models.Config(**config))
        self.ecs = EcsClient(utils_models.Config(**config))

    def call(self, action, params, product="vpc"):
        client, models = (self.vpc, vpc_models) if product == "vpc" else (self.ecs, ecs_models)
        request = getattr(models, action + "Request")().from_map(params)
        method = getattr(client, snake(action) + "_with_options")
        try:
            return method(request, RuntimeOptions(autoretry=False)).body.to_map()
        except DaraException as error:
            status = getattr(error, "status_code", None) or getattr(error, "statusCode", None)
            retry_after = getattr(error, "retry_after", None)
            raise Refused(error.code, status, error.message, retry_after) from error

    def same_nonce(self):
        return unittest.mock.patch.object(tea_utils.Utils, "get_nonce", return_value="twice")


class Old:
    """The SDK of before."""

    def __init__(self, name, api, key):
        self.name, self.api = name, api
        if "token" in key:
            credential = StsTokenCredential(key["id"], key["secret"], key["token"])
            self.client = AcsClient(region_id=REGION, credential=credential, auto_retry=False)
        else:
            self.client = AcsClient(key["id"], key["secret"], REGION, auto_retry=False)

    def call(self, action, params):
        module = importlib.import_module(f"aliyunsdkvpc.request.v20160428.{action}Request")
        request = getattr(module, action + "Request")()
        request.set_endpoint(self.api)
        request.set_protocol_type("http")
        request.set_accept_format("json")
        for name, value in params.items():
            # A list's setter has one more `s`; a parameter that this SDK is too old for still goes out.
            setter = getattr(request, f"set_{name}s" if isinstance(value, list) else f"set_{name}", None)
            if setter:
                setter(value)
            elif isinstance(value, list):
                for number, item in enumerate(value, 1):
                    for field, part in item.items():
                        request.add_query_param(f"{name}.{number}.{field}", part)
            else:
                request.add_query_param(name, value)
        try:
            return json.loads(self.client.do_action_with_exception(request))
        except ServerException as error:
            raise Refused(error.get_error_code(), error.get_http_status(), error.get_error_msg()) from error

    def same_nonce(self):
        return unittest.mock.patch.object(parameter_helper, "get_uuid", return_value="twice")


class World:
    """The emulator, reached as its users and as its owner."""

    def __init__(self, api, metadata, control):
        self.api, self.metadata, self.control_at = api, metadata, control
        self.baseline = self.control("GET", "/state")

    def control(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if data else {}
        request = urllib.request.Request(
            f"http://{self.control_at}{path}", data=data, method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def start_afresh(self):
        self.control("PUT", "/state", self.baseline)

    def clients(self, key=None):
        key = key or KEY
        return [
            Tea("tea-v3", self.api, key, version_1=False),
            Tea("tea-v1", self.api, key, version_1=True),
            Old("old-v1", self.api, key),
        ]

    def role_key(self, role):
        """Credentials as the metadata service gives them to an instance, in the two steps of its second version."""
        token_request = urllib.request.Request(
            f"http://{self.metadata}/latest/api/token",
            method="PUT",
            headers={"X-aliyun-ecs-metadata-token-ttl-seconds": "60"},
        )
        with urllib.request.urlopen(token_request, timeout=DEADLINE_S) as answer:
            token = answer.read().decode()
        request = urllib.request.Request(
            f"http://{self.metadata}/latest/meta-data/ram/security-credentials/{role}",
            headers={"X-aliyun-ecs-metadata-token": token},
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            given = json.load(answer)
        return {"id": given["AccessKeyId"], "secret": given["AccessKeySecret"], "token": given["SecurityToken"]}


def say(**fields):
    print(json.dumps(fields), flush=True)


# --- provoking error codes -----------------------------------------------------------------------------------------


def perform(world, client, steps):
    """Brings the emulator into the state in which a row's call is refused; answers the last call's answer."""
    last = {}
    for step in steps:
        if "control" in step:
            world.control(*step["control"])
        elif "calls" in step:
            action, params, times = step["calls"]
            for _ in range(times):
                last = until_not_busy(client, action, params)
        else:
            last = client.call(*step["call"])
    return last


def until_not_busy(client, action, params):
    ends = time.monotonic() + DEADLINE_S
    while True:
        try:
            return client.call(action, params)
        except Refused as error:
            if error.code not in BUSY or time.monotonic() > ends:
                raise
            time.sleep(0.02)


def key_for(world, wanted):
    if "role" not in wanted:
        return wanted
    key = world.role_key(wanted["role"])
    if wanted.get("withoutToken"):
        del key["token"]
    if wanted.get("expire"):
        world.control("POST", "/role-credentials/expire")
    return key


def provoke(world, which, row):
    """What one SDK got for a row: code, HTTP status and message."""
    world.start_afresh()
    client = world.clients()[which]
    last = perform(world, client, row.get("given", []))
    params = {
        name: last[value[1:]] if isinstance(value, str) and value.startswith("$") else value
        for name, value in copy.deepcopy(row["call"]).items()
    }
    if "credentials" in row:
        client = world.clients(key_for(world, row["credentials"]))[which]
    ends = time.monotonic() + DEADLINE_S
    while True:
        seen = attempt(client, row, params)
        if seen["code"] == row["code"] or not row.get("until") or time.monotonic() > ends:
            return client.name, seen
        time.sleep(0.1)


def attempt(client, row, params):
    try:
        if row.get("repeatNonce"):
            with client.same_nonce():
                client.call(row["action"], params)
                answer = client.call(row["action"], params)
        else:
            answer = client.call(row["action"], params)
    except Refused as error:
        return {"code": error.code, "status": error.status, "message": error.message}
    failed = answer.get("FailedRouteEntries") or [{}]
    if row.get("item"):
        return {"code": failed[0].get("FailedCode"), "status": 200, "message": failed[0].get("FailedMessage")}
    return {"code": None, "status": 200, "message": json.dumps(answer)}


def codes(world):
    rows = json.loads((Path(__file__).parent / "codes.json").read_text())
    for number, row in enumerate(rows):
        if "cannotOccur" in row:
            continue
        for which in range(3):
            name, seen = provoke(world, which, row)
            say(row=number, sdk=name, **seen)


# --- the life of route entries -------------------------------------------------------------------------------------


def listed(client, table, **filters):
    """All custom entries, two by two, and how many pages that took."""
    entries, pages = [], 0
    params = {"RouteTableId": table, "MaxResult": 2, "RouteEntryType": "Custom", **filters}
    while True:
        answer = client.call("DescribeRouteEntryList", params)
        pages += 1
        entries += answer["RouteEntrys"]["RouteEntry"]
        if not answer.get("NextToken"):
            return entries, pages
        params["NextToken"] = answer["NextToken"]


def settled(client, table):
    ends = time.monotonic() + DEADLINE_S
    while True:
        entries, pages = listed(client, table)
        if all(entry["Status"] == "Available" for entry in entries):
            return {entry["DestinationCidrBlock"]: entry for entry in entries}, pages
        if time.monotonic() > ends:
            raise TimeoutError(f"not settled: {entries}")
        time.sleep(0.02)


def entries_live(client):
    table = "vtb-main"
    made = client.call(
        "CreateRouteEntry",
        {"RouteTableId": table, "DestinationCidrBlock": "172.20.1.0/24", "NextHopId": "i-1", "ClientToken": "once"},
    )
    again = client.call(
        "CreateRouteEntry",
        {"RouteTableId": table, "DestinationCidrBlock": "172.20.1.0/24", "NextHopId": "i-1", "ClientToken": "once"},
    )
    assert made["RouteEntryId"] == again["RouteEntryId"], (made, again)
    assert made["RequestId"] != again["RequestId"], made
    there, _ = settled(client, table)
    assert set(there) == {"172.20.1.0/24"}, there
    hop = there["172.20.1.0/24"]["NextHops"]["NextHop"][0]
    assert (hop["NextHopId"], hop["NextHopType"]) == ("i-1", "Instance"), hop

    batch = [
        {"RouteTableId": table, "DstCidrBlock": net, "NextHop": hop, "NextHopType": kind, "IpVersion": version}
        for net, hop, kind, version in [
            ("172.20.2.0/24", "i-2", "Instance", 4),
            ("172.20.3.0/24", "eni-1b", "NetworkInterface", 4),
            ("172.20.1.0/24", "i-2", "Instance", 4),
            ("2001:db8:1::/64", "i-1", "Instance", 6),
        ]
    ]
    answer = until_not_busy(client, "CreateRouteEntries", {"RouteEntries": batch})
    assert (answer["SuccessCount"], answer["FailedCount"]) == (3, 1), answer
    assert len(answer["RouteEntryIds"]) == 3, answer
    assert answer["FailedRouteEntries"][0]["DstCidrBlock"] == "172.20.1.0/24", answer
    there, pages = settled(client, table)
    assert set(there) == {"172.20.1.0/24", "172.20.2.0/24", "172.20.3.0/24", "2001:db8:1::/64"}, there
    assert pages == 2, pages
    assert there["2001:db8:1::/64"]["IpVersion"] == "IPv6", there

    counted = client.call("GetVpcRouteEntrySummary", {"VpcId": "vpc-main", "RouteTableId": table})
    counts = {one["RouteEntryType"]: one["Count"] for one in counted["RouteEntrySummarys"][0]["EntrySummarys"]}
    assert (counts["custom"], counts["all"] - counts["system"]) == (4, 4), counts

    until_not_busy(
        client,
        "DeleteRouteEntry",
        {"RouteTableId": table, "DestinationCidrBlock": "172.20.1.0/24", "NextHopId": "i-1"},
    )
    gone = [{"RouteTableId": table, "DstCidrBlock": "172.20.2.0/24", "NextHop": "i-2"}]
    gone.append({"RouteTableId": table, "RouteEntryId": there["172.20.3.0/24"]["RouteEntryId"]})
    gone.append({"RouteTableId": table, "DstCidrBlock": "172.20.9.0/24", "NextHop": "i-2"})
    answer = until_not_busy(client, "DeleteRouteEntries", {"RouteEntries": gone})
    assert (answer["SuccessCount"], answer["FailedCount"]) == (2, 1), answer
    there, _ = settled(client, table)
    assert set(there) == {"2001:db8:1::/64"}, there


def tables_live(client):
    listed_tables = client.call("DescribeRouteTableList", {"VpcId": "vpc-main"})["RouterTableList"]["RouterTableListType"]
    assert listed_tables[0]["RouteTableType"] == "System", listed_tables
    table = until_not_busy(client, "CreateRouteTable", {"VpcId": "vpc-main", "RouteTableName": "second"})["RouteTableId"]
    until_not_busy(client, "AssociateRouteTable", {"RouteTableId": table, "VSwitchId": "vsw-a"})
    until_not_busy(client, "CreateRouteEntry", {"RouteTableId": table, "DestinationCidrBlock": "172.20.1.0/24", "NextHopId": "i-1"})
    refused(client, "DependencyViolation.VSwitch", "DeleteRouteTable", {"RouteTableId": table})
    until_not_busy(client, "UnassociateRouteTable", {"RouteTableId": table, "VSwitchId": "vsw-a"})
    settled(client, table)
    ends = time.monotonic() + DEADLINE_S
    while bound(client, table) != []:
        assert time.monotonic() < ends, "still bound"
        time.sleep(0.02)
    refused(client, "DependencyViolation.RouteEntry", "DeleteRouteTable", {"RouteTableId": table})
    until_not_busy(client, "DeleteRouteEntry", {"RouteTableId": table, "DestinationCidrBlock": "172.20.1.0/24", "NextHopId": "i-1"})
    while listed(client, table)[0]:
        assert time.monotonic() < ends, "still there"
        time.sleep(0.02)
    until_not_busy(client, "DeleteRouteTable", {"RouteTableId": table})
    while bound(client, table) is not None:
        assert time.monotonic() < ends, "still listed"
        time.sleep(0.02)


def refused(client, code, action, params):
    try:
        until_not_busy(client, action, params)
    except Refused as error:
        assert error.code == code, error
        return error
    raise AssertionError(f"{action} is not refused")


def bound(client, table):
    """The vSwitches of a table; None when it is not listed."""
    found = client.call("DescribeRouteTableList", {"RouteTableId": table})["RouterTableList"]["RouterTableListType"]
    return found[0]["VSwitchIds"]["VSwitchId"] if found else None


def instances_live(client):
    params = {"RegionId": REGION, "InstanceIds": json.dumps(["i-1", "i-2"]), "MaxResults": 100}
    answer = client.call("DescribeInstances", params, product="ecs")
    assert [one["InstanceId"] for one in answer["Instances"]["Instance"]] == ["i-1", "i-2"], answer
    assert answer["PageSize"] == 100, answer
    interfaces = {"RegionId": REGION, "NetworkInterfaceId": ["eni-1"]}
    client.call(
        "ModifyNetworkInterfaceAttribute",
        {"RegionId": REGION, "NetworkInterfaceId": "eni-1", "SourceDestCheck": False},
        product="ecs",
    )
    answer = client.call("DescribeNetworkInterfaces", interfaces, product="ecs")
    found = answer["NetworkInterfaceSets"]["NetworkInterfaceSet"]
    assert (found[0]["NetworkInterfaceId"], found[0]["SourceDestCheck"]) == ("eni-1", False), answer


def throttled(world, client):
    """The new SDK reads the header that says when to come back."""
    fault = {"status": 429, "code": "Throttling.User", "message": "Request was denied due to user flow control."}
    kind = {"answer": {**fault, "retryAfterS": 3}}
    world.control("PUT", "/faults", [{"action": "DescribeVpcs", "times": 1, "kind": kind}])
    error = refused(client, "Throttling.User", "DescribeVpcs", {"RegionId": REGION})
    assert error.retry_after in (3, 3000), error.retry_after


def drive(world):
    for which in range(3):
        for with_role in (False, True):
            world.start_afresh()
            key = world.role_key("node") if with_role else KEY
            client = world.clients(key)[which]
            entries_live(client)
            tables_live(client)
            if isinstance(client, Tea):
                instances_live(client)
                throttled(world, client)
            say(sdk=client.name, role=with_role, done=True)


def main():
    api, metadata, control, what = sys.argv[1:]
    world = World(api, metadata, control)
    {"drive": drive, "codes": codes}[what](world)


if __name__ == "__main__":
    main()
