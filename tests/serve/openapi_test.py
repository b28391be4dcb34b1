"""Requests made up from the description of the API that the server hands out: whatever they are, no 5xx."""

import schemathesis
from hypothesis import HealthCheck, settings
from server_process import ServerProcess

process = ServerProcess()
process.__enter__()
schema = schemathesis.openapi.from_url(process.url + "/openapi.json")


def teardown_module():
    process.__exit__()


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_no_server_error(case):
    response = case.call(base_url=process.url, timeout=30)
    assert response.status_code < 500, response.text
