import pytest
from server_process import ServerProcess


@pytest.fixture(scope="session")
def server():
    with ServerProcess() as running:
        yield running
