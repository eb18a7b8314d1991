//! What operators ask for in a query string.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use http::StatusCode;

use crate::net::problem::Problem;
use crate::types::page::Page;

/// Entries of a page, if the query doesn't say how many.
const LIMIT: usize = 100;

/// Entries of a page. More would make answers of megabytes.
const LIMIT_MAX: usize = 1000;

/// Returns a query. `known`: says which parameters there are.
///
/// # Errors
/// The query has other parameters, or values of another type.
pub fn read<T>(query: Result<Query<T>, QueryRejection>, known: &str) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| wrong(format!("{}; {known}", error.body_text())))
}

/// Returns the page that a query asks for.
///
/// # Errors
/// It asks for too many entries, or for none.
pub fn page(after: usize, limit: Option<usize>) -> Result<Page, Problem> {
    Ok(Page { after, limit: self::limit(limit)? })
}

/// Returns the number of entries that a query asks for.
///
/// # Errors
/// It asks for too many entries, or for none.
pub fn limit(limit: Option<usize>) -> Result<usize, Problem> {
    let limit = limit.unwrap_or(LIMIT);
    let problem = || wrong(format!("limit is a number from 1 to {LIMIT_MAX}, and not {limit}"));
    (1..=LIMIT_MAX).contains(&limit).then_some(limit).ok_or_else(problem)
}

fn wrong(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "query", detail)
}
