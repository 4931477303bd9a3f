"""Our programs, and real brokers.

What goes wrong at a broker, and where it is shown that everybody concerned is told, and that nothing is lost:

| what | at the programs | at the bus, or the command |
|---|---|---|
| broker unreachable | test_bad_input_reach, test_bad_input_brokers | contract/test_reconnecting |
| wrong password | test_bad_input_reach, test_bad_input_brokers | contract/test_amqp_refused, test_doctor |
| certificate refused or expired | test_bad_input_reach, test_bad_input_certificates | contract/test_tls |
| our certificate refused | test_bad_input_certificates | contract/test_tls_refused, test_tls, test_doctor |
| ACL denies | test_bad_input_silence, test_bad_input_brokers | contract/test_amqp, test_isolation |
| RabbitMQ memory alarm | test_bad_input_rabbitmq | contract/test_amqp, test_doctor_rabbitmq |
| queue full | test_bad_input_rabbitmq | contract/test_amqp |
| queue missing | test_bad_input_rabbitmq | contract/test_amqp_refused, test_doctor_rabbitmq |
| consumer time-out | test_bad_input_rabbitmq | contract/test_amqp |
| Mosquitto at its dropping defaults | test_bad_input_silence | test_doctor: the doctor, and ``serve`` |
| disk full at agent and coordinator | test_disk_full at each broker, sim/test_full_disks | broker/test_room |
| clock off by a day | test_bad_input_weather | test_doctor_rabbitmq, coordinator/test_bad_input_state |
| another federation on the broker | test_bad_input_company | test_broker_mosquitto, test_isolation |
| a foreign client on our topics | test_bad_input_company, test_bad_input_brokers | edge_agent/test_listen |
| 64 kB/s link | test_bad_input_weather, test_slow_link | contract/test_keepalive |
| broker restarted every 10 s | test_bad_input_weather, test_transports | contract/test_restarts |
"""
