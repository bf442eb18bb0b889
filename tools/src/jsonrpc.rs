//! JSON-RPC 2.0 over a Unix socket, as SPDK speaks it: concatenated objects, no framing. Server and client.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::config::MethodError;

/// Where a server listens if nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/tmp/nacre.sock";
/// Largest request or answer, bytes.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Answers method calls.
pub trait Handler {
    /// Does one call.
    fn call(&self, method: String, params: Value) -> LocalBoxFuture<'_, Result<Value, MethodError>>;
}

/// A listening socket; its file goes when this is dropped.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
}

impl Server {
    /// Binds. A socket file that nobody listens on is replaced; one in use is an error that says so.
    pub async fn bind(path: &Path) -> std::io::Result<Server> {
        match UnixListener::bind(path) {
            Ok(listener) => Ok(Server { path: path.to_owned(), listener }),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(error);
                }
                std::fs::remove_file(path)?;
                Ok(Server { path: path.to_owned(), listener: UnixListener::bind(path)? })
            }
            Err(error) => Err(error),
        }
    }

    /// Serves for ever.
    pub async fn run(&self, handler: Rc<dyn Handler>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handler = Rc::clone(&handler);
                    tokio::task::spawn_local(async move {
                        if let Err(error) = serve(stream, handler).await {
                            tracing::debug!("control connection ended: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("control socket: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}

async fn serve(mut stream: UnixStream, handler: Rc<dyn Handler>) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let (requests, used, broken) = complete_values(&buffer);
        buffer.drain(..used);
        for request in requests {
            if let Some(answer) = answer(request, &*handler).await {
                stream.write_all(answer.to_string().as_bytes()).await?;
            }
        }
        if broken || buffer.len() > MESSAGE_BYTES_MAX {
            let error = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "not JSON"}});
            stream.write_all(error.to_string().as_bytes()).await?;
            return Ok(());
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// The whole values at the start of `bytes`, how many bytes they take, and whether what follows can never be one.
fn complete_values(bytes: &[u8]) -> (Vec<Value>, usize, bool) {
    let mut stream = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    let mut values = Vec::new();
    let mut used = 0;
    loop {
        match stream.next() {
            Some(Ok(value)) => {
                values.push(value);
                used = stream.byte_offset();
            }
            Some(Err(error)) => return (values, used, !error.is_eof()),
            None => return (values, bytes.len(), false),
        }
    }
}

async fn answer(request: Value, handler: &dyn Handler) -> Option<Value> {
    let id = request.get("id").cloned();
    let result = match request.get("method").and_then(Value::as_str) {
        Some(method) => {
            let params = request.get("params").cloned().unwrap_or(Value::Null);
            handler.call(method.to_owned(), params).await
        }
        None => Err(MethodError { code: -32600, message: "a request needs a method".to_owned() }),
    };
    // Without an id it is a notification: done, not answered (JSON-RPC 2.0, 4.1).
    let id = id?;
    Some(match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": {"code": error.code, "message": error.message}}),
    })
}

/// Why a call to a server failed.
#[derive(Debug, thiserror::Error)]
pub enum CallFailed {
    /// Nobody listens.
    #[error(
        "no server answers at {path}: {source}; is nacred (or quickstart, or a mount) running? -r names another socket"
    )]
    Connect {
        /// The socket.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("{path}: {source}")]
    Broken {
        /// The socket.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The server said no.
    #[error("{0}")]
    Method(MethodError),
}

/// Calls a method of the server at `path`.
pub async fn call(path: &Path, method: &str, params: Value) -> Result<Value, CallFailed> {
    let name = path.display().to_string();
    let mut stream =
        UnixStream::connect(path).await.map_err(|source| CallFailed::Connect { path: name.clone(), source })?;
    let broken = |source| CallFailed::Broken { path: name.clone(), source };
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    stream.write_all(request.to_string().as_bytes()).await.map_err(broken)?;
    let mut buffer = Vec::new();
    loop {
        if stream.read_buf(&mut buffer).await.map_err(broken)? == 0 {
            return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let (answers, _, wrong) = complete_values(&buffer);
        if wrong || buffer.len() > MESSAGE_BYTES_MAX {
            return Err(broken(std::io::ErrorKind::InvalidData.into()));
        }
        let Some(mut answer) = answers.into_iter().next() else { continue };
        if let Some(error) = answer.get("error") {
            let code = error["code"].as_i64().unwrap_or(-1);
            let message = error["message"].as_str().unwrap_or("no message").to_owned();
            return Err(CallFailed::Method(MethodError { code, message }));
        }
        return Ok(answer["result"].take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Handler for Echo {
        fn call(&self, method: String, params: Value) -> LocalBoxFuture<'_, Result<Value, MethodError>> {
            Box::pin(async move { if method == "echo" { Ok(params) } else { Err(MethodError::unknown(&method)) } })
        }
    }

    #[tokio::test(flavor = "local")]
    async fn calls_errors_and_concatenated_requests() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let server = Server::bind(&path).await.unwrap();
        assert!(Server::bind(&path).await.is_err(), "a socket in use is not taken over");
        tokio::task::spawn_local(async move { server.run(Rc::new(Echo)).await });

        assert_eq!(call(&path, "echo", json!({"a": 1})).await.unwrap(), json!({"a": 1}));
        let error = call(&path, "nothing", Value::Null).await.unwrap_err().to_string();
        assert!(error.contains("nothing"), "{error}");

        let mut stream = UnixStream::connect(&path).await.unwrap();
        let two = br#"{"jsonrpc":"2.0","id":1,"method":"echo","params":[1]}{"jsonrpc":"2.0","id":2,"method":"echo"}"#;
        // In two writes, cut inside an object.
        stream.write_all(&two[..20]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        stream.write_all(&two[20..]).await.unwrap();
        let mut bytes = Vec::new();
        while complete_values(&bytes).0.len() < 2 {
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
        }
        stream.write_all(b"}").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert!(rest.contains("-32700"), "{rest}");
    }
}
