//! `nacred`: the server daemon. Its configuration is checked whole before anything starts.

use std::process::ExitCode;
use std::rc::Rc;

use nacre_reactor::{CpuMask, Options, Placement, Spin, run_on_this_thread};

use crate::cli::Nacred;
use crate::config::Config;
use crate::jsonrpc;
use crate::node::{Node, NodeHandler};
use crate::output::{Context, Error, Result};

pub fn run(arguments: &Nacred) -> Result<ExitCode> {
    let config = Config::read(&arguments.config)?;
    let placement = match &arguments.cpumask {
        Some(mask) => Placement::Bound(CpuMask::parse(mask)?),
        None => Placement::Anywhere(std::thread::available_parallelism()?.get()),
    };
    let spin = if arguments.poll { Spin::Always } else { crate::node::SPIN };
    run_on_this_thread(&Options { name: "control".to_owned(), ..Options::default() }, async {
        let socket = &arguments.rpc_socket;
        let server = jsonrpc::Server::bind(socket)
            .await
            .context(format!("control socket {} (another nacred? -r chooses another path)", socket.display()))?;
        let mut stop = crate::signals::Stop::new()?;
        let node = Rc::new(Node::new(&placement, spin)?);
        let start = async {
            for (method, call) in config.calls {
                node.create(method, call).await.map_err(|error| Error::new(error.message))?;
            }
            Ok::<_, Error>(())
        };
        tokio::select! {
            biased;
            name = stop.requested() => {
                tracing::info!("{name} while starting");
                node.stop().await;
                return Ok(ExitCode::FAILURE);
            }
            started = start => {
                if let Err(error) = started {
                    node.stop().await;
                    return Err(error);
                }
            }
        }
        println!("ready {}", node.where_it_listens());
        let handler = Rc::new(NodeHandler(Rc::clone(&node)));
        tokio::select! {
            biased;
            name = stop.requested() => tracing::info!("{name}: stopping"),
            () = server.run(handler) => {}
        }
        node.stop().await;
        Ok(ExitCode::SUCCESS)
    })?
}
