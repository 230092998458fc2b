-- Asks sesiones about the request; see haproxy.cfg.
local URL = "http://127.0.0.1:8082/sesiones/verificar"
local IDENTITY = { "x-id-usuario", "x-id-sesion", "x-fecha-expiracion" }

core.register_action("sesiones", { "http-req" }, function(txn)
    local sent, credentials = txn.http:req_get_headers(), {}
    for _, name in ipairs({ "x-auth-token", "authorization" }) do
        credentials[name] = sent[name] and { table.unpack(sent[name], 0) }  -- they count from 0
    end
    if txn:get_var("txn.sin_deslizar") then
        credentials["x-sin-deslizar"] = { "1" }
    end
    local answer = core.httpclient():get({ url = URL, headers = credentials, timeout = 3000 })
    if answer.status == 200 then
        for _, name in ipairs(IDENTITY) do
            txn.http:req_set_header(name, answer.headers[name][0])
        end
        txn:set_var("txn.sesion_viva", true)
    elseif answer.status == 401 then
        local reply = txn:reply({ status = 401, body = answer.body })
        for _, name in ipairs({ "www-authenticate", "content-type", "cache-control" }) do
            reply:add_header(name, answer.headers[name][0])
        end
        txn:done(reply)
    end
end)
