//! The routes of each listener, and the checks that every request passes first.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::header::HOST;
use http::{StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use crate::auth::{self, Auth};
use crate::config::{Authority, Config, Scope};
use crate::http::ingress::{self, Ingress};
use crate::http::operate::{self, Operate, dead_letters};
use crate::metrics::Metrics;
use crate::net::permits::Client;
use crate::net::problem::{Problem, ProblemCode};
use crate::session::{self, Sessions};

/// The routes and checks of one listener.
#[derive(Debug)]
pub struct Front {
    auth: Arc<Auth>,
    metrics: Arc<Metrics>,
    routes: TowerToHyperService<Router>,
}

impl Front {
    /// Returns a front with these routes, `/healthz` and `/readyz`.
    pub fn new(routes: Router, operate: &Arc<Operate>, auth: &Arc<Auth>) -> Arc<Front> {
        let health =
            Router::new().route("/healthz", get(operate::health)).route("/readyz", get(operate::ready)).with_state(operate.clone());
        let not_found = async || Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address");
        let not_allowed =
            async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address takes other methods; see Allow");
        let routes = routes.merge(health).fallback(not_found).method_not_allowed_fallback(not_allowed);
        Arc::new(Front { auth: auth.clone(), metrics: operate.node.metrics.clone(), routes: TowerToHyperService::new(routes) })
    }

    /// Answers a request: checks its `Host`, refuses pages of other origins, passes the client on to the routes, and counts problems. Not
    /// a layer of the router, which would cost each request two allocations.
    ///
    /// # Errors
    /// Never.
    pub async fn answer(self: Arc<Front>, client: Client, mut request: http::Request<Incoming>) -> Result<Response, Infallible> {
        let response = match host(&request).and_then(|()| self.auth.origin(request.headers())) {
            Ok(()) => {
                request.extensions_mut().insert(client);
                self.routes.call(request).await?
            }
            Err(problem) => problem.into_response(),
        };
        if let Some(ProblemCode(code)) = response.extensions().get() {
            self.metrics.problems.with_label_values(&[code]).inc();
        }
        Ok(response)
    }
}

/// Checks that a request names its host once: RFC 9112, section 3.2.
fn host<B>(request: &http::Request<B>) -> Result<(), Problem> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let is_named = match (hosts.next(), hosts.next()) {
        (None, _) => request.version() < Version::HTTP_11,
        (Some(host), None) => host.to_str().is_ok_and(Authority::is_one),
        (Some(_), Some(_)) => false,
    };
    let problem = || Problem::new(StatusCode::BAD_REQUEST, "host", "a request has one Host header, a host with or without a port");
    is_named.then_some(()).ok_or_else(problem)
}

/// Returns the routes of clients and producers, and those of operators. Paths are written out, since a nested router costs each request
/// more than finding its route.
pub fn routers(
    config: &Config,
    auth: &Arc<Auth>,
    ingress: Arc<Ingress>,
    sessions: Arc<Sessions>,
    operate: Arc<Operate>,
) -> (Router, Router) {
    let below = |path: &str| format!("{}{path}", config.base_path);
    let sockets = Router::new().route(&below("/ws/{user_id}"), get(session::connect)).with_state(sessions);
    let producers = Router::new()
        .route(&below("/events"), post(ingress::publish))
        .route(&below("/users/{user_id}/messages"), post(ingress::tell))
        .with_state(ingress);
    let operators = Router::new()
        .route(&below("/users/{user_id}"), get(operate::presence))
        .route(&below("/users/{user_id}/sessions"), delete(operate::end_sessions))
        .route(&below("/policies"), get(operate::policies))
        .route(&below("/policies/reload"), post(operate::reload))
        .route(&below("/dead-letters"), get(dead_letters::list).delete(dead_letters::delete_all))
        .route(&below("/dead-letters/retry"), post(dead_letters::retry_all))
        .route(&below("/dead-letters/{id}"), get(dead_letters::show).delete(dead_letters::delete))
        .route(&below("/dead-letters/{id}/retry"), post(dead_letters::retry))
        .route("/metrics", get(operate::metrics))
        .with_state(operate);
    let guarded = |routes: Router, publishes: bool| {
        if !auth.asks().0 {
            return routes;
        }
        routes.route_layer(from_fn_with_state((auth.clone(), publishes), permit))
    };
    (sockets.merge(guarded(producers, true)), guarded(operators, false))
}

/// Lets a request of a producer or operator pass if its key has the scope that the route needs.
async fn permit(State((auth, publishes)): State<(Arc<Auth>, bool)>, request: Request, next: Next) -> Response {
    let scope = if publishes { Scope::Publish } else { auth::operating_scope(request.method()) };
    match auth.permits(request.headers(), scope) {
        Ok(()) => next.run(request).await,
        Err(refused) => Problem::from(refused).into_response(),
    }
}
