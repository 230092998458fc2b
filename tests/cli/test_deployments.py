"""The commands that look through every key, on one server, behind Sentinel and on a Cluster."""

import asyncio
from contextlib import aclosing

import orjson

from sesiones import tokens
from sesiones.sesion import Sesion
from tests.harness.command_line import CommandLine
from tests.harness.stores import open_store


async def are_live(url: str, made: list[Sesion]) -> list[bool]:
    async with aclosing(open_store(url)) as store:
        return [await store.find(sesion.Token_Sesion) is not None for sesion in made]


def test_stats_and_names_and_end_all_work_on_every_kind_of_deployment(
    deployment_url: str, sesiones: CommandLine
) -> None:
    there = sesiones.at(deployment_url)
    made = there.create(*range(30))
    code, out, _ = there("stats", "--json")
    assert code == 0
    counts = orjson.loads(out)
    assert counts["oldest"] in {sesion.Fecha_Inicio for sesion in made}
    assert (counts["users"], counts["sessions"], counts["active"]) == (30, 30, 30)

    for sesion in made[:4]:
        name = f"ses_#{tokens.fingerprint(sesion.Token_Sesion)}"
        assert there.listed("--name", name) == {sesion.ID_Sesion}
        assert there.users("--name", name, "--end")[0] == 0
        assert there.listed("--name", name) == set()

    assert there("end-all", "--json")[1] == '{"Sesiones":26}\n'
    assert asyncio.run(are_live(deployment_url, made)) == [False] * 4 + [True] * 26
    assert there("end-all", "--yes", "--json")[1] == '{"Sesiones_Eliminadas":26}\n'
    assert asyncio.run(are_live(deployment_url, made)) == [False] * 30
