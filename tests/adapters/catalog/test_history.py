from adapters.catalog.history import current_user


def test_a_change_is_signed_even_where_the_user_has_no_name(monkeypatch) -> None:
    assert current_user()

    def nameless() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert current_user() == "unknown"
