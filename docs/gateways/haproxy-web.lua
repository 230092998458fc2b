-- The token of the cookie __Host-sesion becomes a header, x-auth-token; see haproxy-web.cfg.
core.register_action("cookie", { "http-req" }, function(txn)
    local lines = txn.http:req_get_headers()["cookie"] or {}
    txn.http:req_del_header("cookie")
    for number = 0, #lines do  -- they count from 0
        local kept = {}
        for pair in (lines[number] or ""):gmatch("[^;]+") do
            local equals, token = pair:match("^%s*__Host%-sesion(%s*=)(.*)$")
            if equals == "=" then
                txn.http:req_add_header("x-auth-token", token)
            elseif not equals then
                table.insert(kept, pair)
            end
        end
        if kept[1] then
            txn.http:req_add_header("cookie", table.concat(kept, ";"))
        end
    end
end)
