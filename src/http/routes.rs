//! The routes of each listener, and the checks that every request passes first.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use crate::auth::{self, Auth};
use crate::cluster::{Answering, Answers, Boxed, Fate, Taken};
use crate::config::{Authority, Config, Scope};
use crate::http::console;
use crate::http::descriptions::{self, Descriptions};
use crate::http::ingress::{self, Address, Answered, Ingress};
use crate::http::operate::{self, Operate, candidates, dead_letters, lists, live, recordings};
use crate::metrics::Metrics;
use crate::net::permits::Client;
use crate::net::problem::{Problem, ProblemCode};
use crate::net::stream::Takeover;
use crate::node::Node;
use crate::session::{self, Sessions, sse};

/// An answer: in one piece, as those to producers are, or as a route makes it.
pub type Answer = http::Response<Either<Full<Bytes>, axum::body::Body>>;

/// The routes and checks of one listener.
#[derive(Debug)]
pub struct Front {
    auth: Arc<Auth>,
    metrics: Arc<Metrics>,
    /// Answers what producers POST, if this listener is theirs.
    ingress: Option<Arc<Ingress>>,
    routes: TowerToHyperService<Router>,
}

/// What each request of a connection comes with.
#[derive(Debug)]
pub struct Line {
    pub front: Arc<Front>,
    pub client: Client,
    pub takeover: Takeover,
}

impl Front {
    /// Returns a front with these routes, `/`, `/healthz`, `/readyz` and the descriptions, and perhaps the addresses to which producers POST.
    pub fn new(ingress: Option<Arc<Ingress>>, routes: Router, operate: &Arc<Operate>, auth: &Arc<Auth>) -> Arc<Front> {
        let health = Router::new()
            .route("/", get(operate::index))
            .route("/healthz", get(operate::health))
            .route("/readyz", get(operate::ready))
            .with_state(operate.clone());
        let base_path = &operate.node.config.base_path;
        let below = |path: &str| format!("{base_path}{path}");
        let described = Router::new()
            .route(&below("/openapi.json"), get(descriptions::openapi))
            .route(&below("/asyncapi.json"), get(descriptions::asyncapi))
            .with_state(Arc::new(Descriptions::new(base_path)));
        let not_found = async || Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address");
        let routes = routes.merge(health).merge(described).fallback(not_found).method_not_allowed_fallback(async || not_allowed());
        let metrics = operate.node.metrics.clone();
        Arc::new(Front { auth: auth.clone(), metrics, ingress, routes: TowerToHyperService::new(routes) })
    }

    /// Checks a request's `Host`, and refuses pages of other origins. Returns where a producer's POST goes.
    fn check<B>(&self, request: &http::Request<B>) -> Result<Option<(&Arc<Ingress>, Address)>, Problem> {
        host(request)?;
        self.auth.origin(request.headers())?;
        let Some(ingress) = &self.ingress else { return Ok(None) };
        let Some(address) = ingress.address(request.uri().path()) else { return Ok(None) };
        if request.method() == Method::POST {
            self.auth.permits(request.headers(), Scope::Publish)?;
        }
        Ok(Some((ingress, address)))
    }
}

impl Line {
    /// Answers a request, and counts problems. Producers send nearly all requests, so theirs pass neither the router nor layers, which would
    /// cost each of them 4,000 instructions; and each function that a request is passed to copies it twice.
    ///
    /// # Errors
    /// Never.
    pub async fn answer(self: Arc<Line>, mut request: http::Request<Incoming>) -> Result<Answer, Infallible> {
        let front = &*self.front;
        let answered = match front.check(&request) {
            Ok(None) => {
                request.extensions_mut().insert(self.client);
                request.extensions_mut().insert(self.takeover.clone());
                // Boxed, so that its state is not part of each connection's.
                let Ok(response) = Box::pin(front.routes.call(request)).await;
                Ok(response.map(Either::Right))
            }
            Ok(Some(_)) if request.method() != Method::POST => {
                let mut response = not_allowed().into_response();
                response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                Ok(response.map(Either::Right))
            }
            Ok(Some((ingress, address))) => {
                let began = Instant::now();
                let (head, body) = request.into_parts();
                let answered = ingress.post(address, &head, body, began).await;
                answered.map(|answered| {
                    front.metrics.publish_seconds.observe(began.elapsed());
                    match answered {
                        Answered::Here((status, json)) => in_one_piece(status, json, head.headers),
                        Answered::ByLeader(answer) => answer.map(|body| Either::Left(Full::new(body))),
                    }
                })
            }
            Err(problem) => Err(problem),
        };
        let answer = answered.unwrap_or_else(|problem| problem.into_response().map(Either::Right));
        if let Some(ProblemCode(code)) = answer.extensions().get() {
            front.metrics.problems.with_label_values(&[code]).inc();
        }
        Ok(answer)
    }
}

/// Returns an answer of JSON. `map`: the request's, whose memory hyper uses for the next request.
fn in_one_piece(status: StatusCode, json: Vec<u8>, mut map: HeaderMap) -> Answer {
    map.clear();
    map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut answer = http::Response::new(Either::Left(Full::new(json.into())));
    (*answer.status_mut(), *answer.headers_mut()) = (status, map);
    answer
}

fn not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this address takes other methods; see Allow")
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

/// All routes.
#[derive(Debug)]
pub struct Routers {
    /// Those of clients, and of producers' streams.
    pub outside: Router,
    /// Those of operators.
    pub inside: Router,
    /// Those of operators as other nodes pass requests on, which were checked.
    pub among: Router,
}

/// Bytes of the body of an operator's request that is passed on. No such request needs one.
const OPERATE_BODY_BYTES: usize = 64 << 10;

/// What answers other nodes.
struct Inside {
    ingress: Arc<Ingress>,
    among: Router,
}

impl Answers for Inside {
    fn answer(&self, request: http::Request<Bytes>) -> Boxed<http::Response<Bytes>> {
        let (ingress, among) = (self.ingress.clone(), self.among.clone());
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let address = ingress.address(head.uri.path()).filter(|_| head.method == Method::POST);
            let answered = match address {
                Some(address) => match ingress.answer(address, &head, &body, Instant::now()).await {
                    Ok((status, json)) => in_one_piece(status, json, HeaderMap::new()).map(Body::new),
                    Err(problem) => problem.into_response(),
                },
                None => {
                    let Ok(answered) = TowerToHyperService::new(among).call(Request::from_parts(head, Body::from(body))).await;
                    answered
                }
            };
            let (head, body) = answered.into_parts();
            // Answers are in memory: reading one can't fail.
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            http::Response::from_parts(head, body)
        })
    }

    fn frames(&self, frames: Vec<Bytes>) -> Boxed<Vec<Vec<u8>>> {
        let ingress = self.ingress.clone();
        Box::pin(async move { ingress.answer_frames(frames).await })
    }

    fn publish(&self, taken: Vec<Taken>) -> Boxed<Vec<Fate>> {
        let ingress = self.ingress.clone();
        Box::pin(async move { ingress.publish_taken(taken).await })
    }
}

/// Returns what answers other nodes.
pub fn answering(ingress: Arc<Ingress>, among: Router) -> Answering {
    Answering(Arc::new(Inside { ingress, among }))
}

/// Returns the routes. Paths are written out, since a nested router costs each request more than finding
/// its route.
pub fn routers(config: &Config, auth: &Arc<Auth>, sessions: Arc<Sessions>, ingress: Arc<Ingress>, operate: Arc<Operate>) -> Routers {
    let node = operate.node.clone();
    let below = |path: &str| format!("{}{path}", config.base_path);
    let sockets = Router::new()
        .route(&below("/ws/{user_id}"), get(session::connect))
        .route(&below("/sse/{user_id}"), get(sse::stream).options(sse::preflight))
        .route(&below("/sse/{user_id}/{session}"), post(sse::post).options(sse::preflight))
        .with_state(sessions);
    let streams = Router::new().route(&below("/publish"), get(ingress::stream::open)).with_state(ingress);
    let operators = Router::new()
        .route(&below("/live"), get(live::live))
        .route(&below("/stats"), get(lists::stats))
        .route(&below("/settings"), get(lists::settings))
        .route(&below("/users"), get(lists::users))
        .route(&below("/users/{user_id}"), get(operate::presence))
        .route(&below("/users/{user_id}/sessions"), delete(operate::end_sessions))
        .route(&below("/groups/{name}"), get(operate::groups::show))
        .route(&below("/receipts/{event_id}"), get(operate::receipts::show))
        .route(&below("/sinks"), get(operate::sinks))
        .route(&below("/policies"), get(operate::policies))
        .route(&below("/policies/reload"), post(operate::reload))
        .route(&below("/policies/{name}/candidate"), get(candidates::show).delete(candidates::drop_it))
        .route(&below("/policies/{name}/candidate/promote"), post(candidates::promote))
        .route(&below("/policies/{name}/record"), post(recordings::record))
        .route(&below("/dead-letters"), get(dead_letters::list).delete(dead_letters::delete_all))
        .route(&below("/dead-letters/retry"), post(dead_letters::retry_all))
        .route(&below("/dead-letters/{id}"), get(dead_letters::show).delete(dead_letters::delete))
        .route(&below("/dead-letters/{id}/retry"), post(dead_letters::retry))
        .route(&below("/cluster"), get(operate::cluster))
        .route("/metrics", get(operate::metrics))
        .with_state(operate);
    let among = operators.clone();
    let operators = operators.route_layer(from_fn_with_state(node, pass_on)).route_layer(from_fn_with_state(auth.clone(), permit));
    // Its files need no key.
    Routers { outside: sockets.merge(streams), inside: operators.merge(console::routes(&config.base_path)), among }
}

/// Passes a request on to the node that decides, if it changes something, or if only that node knows the answer.
async fn pass_on(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().strip_prefix(&node.config.base_path).unwrap_or_default();
    let is_known_there = path.starts_with("/receipts/") || path == "/sinks";
    // Each node has plugins and a configuration of its own.
    let changes = !request.method().is_safe() && !path.starts_with("/policies/");
    if !node.cluster.follows() || !(changes || is_known_there) {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, OPERATE_BODY_BYTES).await else {
        let detail = format!("the body can't be read, or is over {OPERATE_BODY_BYTES} bytes: leave it out");
        return Problem::new(StatusCode::BAD_REQUEST, "body", detail).into_response();
    };
    match node.cluster.forward(&head, &body).await {
        Ok(Some(answered)) => answered.map(Body::from),
        Ok(None) => next.run(Request::from_parts(head, body.into())).await,
        Err(why) => Problem::from(why).into_response(),
    }
}

/// Lets a request of an operator pass if its key has the scope that the method needs, or if no key is asked for.
async fn permit(State(auth): State<Arc<Auth>>, request: Request, next: Next) -> Response {
    match auth.permits(request.headers(), auth::operating_scope(request.method())) {
        Ok(()) => next.run(request).await,
        Err(refused) => Problem::from(refused).into_response(),
    }
}
