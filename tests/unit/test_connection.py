"""One set of properties for both clients of Kafka."""

import ssl

import pytest
from pydantic import ValidationError

from app.errors import SettingsError
from app.events.connection import admin_config, client_config, guarded
from app.settings import KafkaSettings


def kafka(**client: str) -> KafkaSettings:
    named = {name.replace("__", "."): value for name, value in client.items()}
    return KafkaSettings(bootstrap_servers="a:1,b:2", client=named)


def test_librdkafka_has_the_properties_as_they_are_and_kafka_python_its_own_names() -> None:
    settings = kafka(
        security__protocol="sasl_ssl",
        sasl__mechanism="scram-sha-512",
        sasl__username="u",
        sasl__password="p",
        ssl__ca__location="/ca.pem",
        linger__ms="7",
    )
    assert settings.client.items() <= client_config(settings).items()
    named = admin_config(settings)
    assert named["bootstrap_servers"] == ["a:1", "b:2"]
    assert (named["security_protocol"], named["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (named["sasl_plain_username"], named["sasl_plain_password"], named["ssl_cafile"]) == ("u", "p", "/ca.pem")
    assert guarded(settings)
    assert not guarded(kafka(linger__ms="7"))


def test_a_certificate_that_is_not_to_be_checked() -> None:
    context = admin_config(kafka(security__protocol="SSL", enable__ssl__certificate__verification="false"))
    assert context["ssl_context"].verify_mode == ssl.CERT_NONE
    assert admin_config(kafka(ssl__endpoint__identification__algorithm="none"))["ssl_check_hostname"] is False


def test_what_only_one_client_would_understand_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"kafka\.client\.ssl\.keystore\.location: found '/k\.p12', wanted one of"):
        admin_config(kafka(ssl__keystore__location="/k.p12"))
    with pytest.raises(SettingsError) as caught:
        admin_config(kafka(sasl__oauthbearer__client__secret="s3cret"))
    assert "s3cret" not in str(caught.value)


def test_what_yaml_takes_for_a_number_or_a_truth_value_is_text_but_for_a_password() -> None:
    given = {"linger.ms": 7, "enable.ssl.certificate.verification": False}
    settings = KafkaSettings.model_validate({"bootstrap_servers": "a:1", "client": given})
    assert settings.client == {"linger.ms": "7", "enable.ssl.certificate.verification": "false"}
    with pytest.raises(ValidationError, match="Input should be a valid string"):
        KafkaSettings.model_validate({"client": {"sasl.password": 0o123}})  # 0123 in the file
