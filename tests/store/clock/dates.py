"""Dates of a session, from the time at which the clock of the tests begins."""

from sesiones.sesion import Sesion
from sesiones.testing import START


def with_dates(sesion: Sesion, expiracion: int, actividad: int) -> Sesion:
    """The session with other dates, from START."""
    return sesion._replace(Fecha_Expiracion=START + expiracion, Ultima_Actividad=START + actividad)
