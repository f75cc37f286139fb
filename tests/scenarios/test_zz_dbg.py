from tests.scenarios.test_consumer_faults import *
from tests.scenarios.test_consumer_faults import GATED
def test_dbg(transactional_db, handlers, make_nats_server, processes, lab):
    server = make_nats_server("debug: true\ntrace: true")
    world = World(server.url).provision()
    send(world, 0, 1, key="a")
    send(world, 2, 3, key="b")
    consumer = processes.consumer(world, GATED, CONCURRENCY=1, SHUTDOWN_TIMEOUT_S=0.5)
    started(lab, 0)
    consumer.terminate()
    (lab / "go").touch()
    second = processes.consumer(world, GATED, "--until-empty", "--timeout", "20")
    second.wait()
    print(effects())
    import re
    for l in server.log.splitlines():
        if "ACK" in l or "NEXT" in l or "NAK" in l or "WPI" in l or "client conn" in l.lower(): print(l[:260])
    assert 0
