from adapters.catalog.history import current_user


def test_an_event_has_an_actor_even_where_the_user_has_no_name(monkeypatch) -> None:
    assert current_user()

    def nameless() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert current_user() == "unknown"
