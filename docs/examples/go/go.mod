module example/sesiones

go 1.19
