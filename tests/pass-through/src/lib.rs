//! The least that a gate could do on Spin: every call goes to the upstream as it came. What the benchmark of the gate is compared with.

use spin_sdk::{
    variables,
    wasip3::{
        self,
        exports::http::handler::Guest,
        http::{
            client,
            types::{ErrorCode, Request, Response, Scheme},
        },
    },
};

struct Component;

wasip3::http::service::export!(Component with_types_in wasip3);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let refused = || ErrorCode::InternalError(None);
        let upstream = variables::get("upstream").await.map_err(|_| refused())?;
        let authority = upstream.strip_prefix("http://").ok_or_else(refused)?;
        request
            .set_scheme(Some(&Scheme::Http))
            .map_err(|()| refused())?;
        request
            .set_authority(Some(authority))
            .map_err(|()| refused())?;
        client::send(request).await
    }
}
